// The state behind runtime.h, and the functions by which device.py reads and changes it.

#include "runtime.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

namespace pretended {

std::recursive_mutex mutex;

namespace {

thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
Stream default_streams[max_devices];
std::multimap<Time, std::function<void()>> later;
std::vector<std::string> lines;
bool logging = false;

double number(const char *name, double otherwise) {
    const char *value = getenv(name);
    return value ? atof(value) : otherwise;
}

// The file that processes share, or memory of this process.
Control *map_control() {
    const char *path = getenv("PRETENDED_CUDA_CONTROL");
    int file = -1;
    if (path) {
        file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0 || ftruncate(file, sizeof(Control)) != 0) {
            perror("PRETENDED_CUDA_CONTROL");
            abort();
        }
    }
    int kind = path ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
    void *memory = mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, kind, file, 0);
    if (memory == MAP_FAILED) {
        perror("PRETENDED_CUDA_CONTROL");
        abort();
    }
    if (file >= 0)
        close(file);
    Control *made = static_cast<Control *>(memory);
    if (made->initialised.exchange(1) == 0) {
        made->devices = std::min<int64_t>(max_devices, number("PRETENDED_CUDA_DEVICES", 2));
        made->driver = number("PRETENDED_CUDA_DRIVER", 13000);
        made->gone = number("PRETENDED_CUDA_GONE", 0);
        made->failing_captures = number("PRETENDED_CUDA_FAILING_CAPTURES", 0);
        for (auto &limit : made->memory_limit)
            limit = number("PRETENDED_CUDA_MEMORY_GB", 22.5) * 1e9;
    }
    return made;
}

} // namespace

Control &control() {
    static Control *mapped = map_control();
    return *mapped;
}

const Speeds &speeds() {
    static const Speeds read = {
        number("PRETENDED_CUDA_KERNEL_US", 5),    number("PRETENDED_CUDA_TRITON_US", 6),
        number("PRETENDED_CUDA_UNKNOWN_US", 60),  number("PRETENDED_CUDA_GEMM_TFLOPS", 50),
        number("PRETENDED_CUDA_COPY_GBS", 12),
    };
    return read;
}

Time now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int &current_device() { return current; }
Counters &counters() { return control().counters[current]; }

Stream &default_stream(int device) {
    default_streams[device].device = device;
    return default_streams[device];
}

Stream &stream_of(cudaStream_t handle) {
    bool is_default = handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
    return is_default ? default_stream(current) : *reinterpret_cast<Stream *>(handle);
}

cudaError_t remember(cudaError_t error) {
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

cudaError_t failure(int device) {
    Control &state = control();
    if (state.gone)
        return static_cast<cudaError_t>(state.gone.load());
    if (state.driver < 13000)
        return cudaErrorInsufficientDriver;
    if (state.lost[device])
        return static_cast<cudaError_t>(state.lost[device].load());
    state.counters[device].calls++;
    settle();
    return cudaSuccess;
}

void work(Stream &stream, double us, const std::string &name) {
    Counters &counted = control().counters[stream.device];
    counted.calls++;
    log(stream, (stream.capture ? "capture " : "") + name);
    if (stream.capture) {
        stream.capture->us += us;
        return;
    }
    stream.busy_until = std::max(stream.busy_until, now()) + static_cast<Time>(us * 1000);
    counted.busy_ns += static_cast<int64_t>(us * 1000);
}

void at(Time time, std::function<void()> function) { later.emplace(time, std::move(function)); }

void settle() {
    Time reached = now();
    while (!later.empty() && later.begin()->first <= reached) {
        auto function = std::move(later.begin()->second);
        later.erase(later.begin());
        function();
    }
}

void wait_until(Time time) {
    Time missing = time - now();
    if (missing > 0) {
        counters().waited_ns += missing;
        timespec pause = {missing / 1000000000LL, missing % 1000000000LL};
        nanosleep(&pause, nullptr);
    }
    Lock lock(mutex);
    settle();
}

void log(int device, const std::string &what) {
    if (logging)
        lines.push_back(std::to_string(device) + " - " + what);
}

void log(const Stream &stream, const std::string &what) {
    if (logging)
        lines.push_back(std::to_string(stream.device) + " " + std::to_string(stream.number) + " " + what);
}

} // namespace pretended

using namespace pretended;

// The error of the last call that failed. That of a lost device is never cleared.
PRETENDED_EXPORT cudaError_t cudaGetLastError() {
    cudaError_t error = last_error;
    last_error = control().lost[current] ? static_cast<cudaError_t>(control().lost[current].load()) : cudaSuccess;
    return error;
}

PRETENDED_EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }

PRETENDED_EXPORT Control *pretended_control() { return &control(); }

// The names of the counters, in the order of the struct.
PRETENDED_EXPORT const char *pretended_counter_names() {
#define PRETENDED_NAME(name) #name " "
    return PRETENDED_COUNTERS(PRETENDED_NAME);
#undef PRETENDED_NAME
}

// Sets the counters of all devices to zero, except for those that describe what is there.
PRETENDED_EXPORT void pretended_reset() {
    Lock lock(mutex);
    for (Counters &each : control().counters) {
        int64_t calls = each.calls, allocated = each.allocated;
#define PRETENDED_ZERO(name) each.name = 0;
        PRETENDED_COUNTERS(PRETENDED_ZERO)
#undef PRETENDED_ZERO
        each.calls = calls;
        each.allocated = allocated;
    }
}

// Nanoseconds until a device has done all that it was given.
PRETENDED_EXPORT int64_t pretended_backlog(int device) {
    Lock lock(mutex);
    return std::max<Time>(0, device_busy_until(device) - now());
}

// Gives a device's default stream work of this duration.
PRETENDED_EXPORT void pretended_occupy(int device, double us) {
    Lock lock(mutex);
    work(default_stream(device), us, "occupy");
}

PRETENDED_EXPORT void pretended_log(int on) {
    Lock lock(mutex);
    logging = on;
    if (on)
        lines.clear();
}

// The lines of the log: the device, the stream or "-", and what was called.
PRETENDED_EXPORT const char *pretended_log_lines() {
    Lock lock(mutex);
    static std::string joined;
    joined.clear();
    for (const std::string &line : lines)
        joined += line + "\n";
    return joined.c_str();
}
