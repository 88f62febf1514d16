// What the parts of the pretended runtime share: the clock, the settings, the counters, streams, events and graphs.
//
// All state is behind one lock. Times are CLOCK_MONOTONIC in nanoseconds. A stream has no queue: it knows until when the
// work that it was given keeps it busy, and what was given is done once that time has passed.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

namespace pretended __attribute__((visibility("default"))) {

constexpr int max_devices = 4;
using Time = int64_t;

// The counters of a device, which device.py reads by these names.
#define PRETENDED_COUNTERS(X)                                                                                          \
    X(launches)         /* kernels, of torch and of Triton, outside of a capture */                                    \
    X(gemms)            /* calls of cuBLAS and cuBLASLt */                                                             \
    X(convolutions)     /* executions of cuDNN's plans */                                                              \
    X(memsets)          /**/                                                                                           \
    X(captured)         /* kernels, GEMMs and convolutions that a capture recorded */                                  \
    X(copies_h2d)       /* copies from host to device */                                                               \
    X(copies_d2h)       /* copies from device to host */                                                               \
    X(copies_d2d)       /* copies within a device and between devices */                                               \
    X(pageable_h2d)     /* those of copies_h2d that are asynchronous and from memory that is not pinned */             \
    X(pageable_d2h)     /* those of copies_d2h to memory that is not pinned: they wait for the stream */               \
    X(stream_syncs)     /* waits for a stream; a copy that waits is none */                                            \
    X(event_syncs)      /* waits for an event */                                                                       \
    X(device_syncs)     /* waits for a device */                                                                       \
    X(event_records)    /**/                                                                                           \
    X(event_queries)    /**/                                                                                           \
    X(captures)         /* captures that ended well */                                                                 \
    X(failed_captures)  /* captures that did not */                                                                    \
    X(graph_launches)   /**/                                                                                           \
    X(mallocs)          /**/                                                                                           \
    X(frees)            /**/                                                                                           \
    X(host_allocations) /* blocks of pinned memory */                                                                  \
    X(busy_ns)          /* device time of the work that was given */                                                   \
    X(waited_ns)        /* time that host threads waited for the device */                                             \
    X(allocated)        /* bytes of device memory in use; a reset keeps it */                                          \
    X(calls)            /* calls that create or use the device's context; a reset keeps it */

struct Counters {
#define PRETENDED_FIELD(name) std::atomic<int64_t> name;
    PRETENDED_COUNTERS(PRETENDED_FIELD)
#undef PRETENDED_FIELD
};

// How the devices behave, and what they have counted. A test changes and reads it while processes run. It lies in a
// file that the processes share if PRETENDED_CUDA_CONTROL names one, so its layout is that of `_Control` in device.py.
struct Control {
    std::atomic<int64_t> initialised;               // 1 once the first process has filled it
    std::atomic<int64_t> devices;                   // the number of devices
    std::atomic<int64_t> driver;                    // the driver's version, 13000 for 13.0; an older one is refused
    std::atomic<int64_t> gone;                      // the cudaError_t of each call, if no device can be reached; else 0
    std::atomic<int64_t> failing_captures;          // the number of captures that are yet to end in an error
    std::atomic<int64_t> lost[max_devices];         // the cudaError_t of each call on this device; 0 while it works
    std::atomic<int64_t> memory_limit[max_devices]; // bytes
    Counters counters[max_devices];
};

// How long work takes, from the environment.
struct Speeds {
    double kernel_us;   // a kernel of torch, and the least for a GEMM
    double triton_us;   // a kernel of Triton
    double unknown_us;  // a plan of cuDNN that is not a convolution
    double gemm_tflops; // GEMMs and convolutions
    double copy_gbs;    // copies between host and device
};

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
};

// What a capture has recorded. Kernels are a duration; copies are done anew at each launch.
struct Graph {
    double us = 0;
    int64_t kernels = 0;
    std::vector<Copy> copies;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
    unsigned long long id = 0;
    uint64_t thread = 0; // the thread that began the capture
    bool invalid = false;
};

struct Stream {
    int device = 0;
    int number = 0; // in the log; 0 is a device's default stream
    Time busy_until = 0;
    Graph *capture = nullptr;
};

struct Event {
    int device = 0;
    int number = 0;
    Time at = 0;
    unsigned long long capture = 0; // the id of the capture in which it was recorded
};

extern std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;

Control &control();
const Speeds &speeds();
Time now();

int &current_device(); // of this thread
Counters &counters();  // of this thread's current device
Stream &default_stream(int device);
Stream &stream_of(cudaStream_t handle);

// The error of each call on a device, or cudaSuccess. Counts the call.
cudaError_t failure(int device);
cudaError_t remember(cudaError_t error); // for cudaGetLastError; returns its argument

// The error of a call that a capture forbids, or cudaSuccess; it makes these captures invalid. A call that waits for a
// stream, or asks for its state, is also forbidden by a capture of this stream.
cudaError_t forbidden_by_capture(const Stream *stream = nullptr);
Graph *active_capture(unsigned long long id); // nullptr if it has ended
void leave_capture(const Graph *graph);       // no stream records this graph any more

// Adds work of this duration to a stream, or to the graph that it records.
void work(Stream &stream, double us, const std::string &name);
// The same for a kernel of any kind, which one of the counters counts.
cudaError_t compute(cudaStream_t stream, double us, const std::string &name, std::atomic<int64_t> Counters::*counter);
double matrix_us(double flops);  // of a GEMM or a convolution
Time device_busy_until(int device);
// Calls a function as soon as this time has passed and the runtime is called.
void at(Time time, std::function<void()> function);
// Calls the functions of `at` whose time has passed.
void settle();
// Waits until this time, without the lock.
void wait_until(Time time);
void copy_now(const Copy &copy, Stream &stream); // an asynchronous copy, outside of a capture

// Adds a line to the log, if it is on.
void log(const Stream &stream, const std::string &what);
void log(int device, const std::string &what);

} // namespace pretended

// The start of each call that needs the lock and a device that works.
#define PRETENDED_CALL_ON(device)                                                                                      \
    pretended::Lock lock(pretended::mutex);                                                                            \
    if (cudaError_t error = pretended::failure(device))                                                                \
    return pretended::remember(error)
#define PRETENDED_CALL PRETENDED_CALL_ON(pretended::current_device())

#define PRETENDED_EXPORT extern "C" __attribute__((visibility("default")))
