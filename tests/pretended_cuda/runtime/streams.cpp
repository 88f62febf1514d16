// Streams, events and kernels.

#include "runtime.h"

#include <algorithm>
#include <string>
#include <unordered_map>
#include <vector>

using namespace pretended;

namespace {

int last_stream = 0, last_event = 0;
std::vector<Stream *> streams; // all but the default ones; never freed, like torch's
std::unordered_map<const void *, std::string> kernel_names;

Event &event_of(cudaEvent_t handle) { return *reinterpret_cast<Event *>(handle); }

struct Configuration {
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

cudaError_t launch(const void *kernel, cudaStream_t stream) {
    PRETENDED_CALL;
    auto found = kernel_names.find(kernel);
    std::string name = found == kernel_names.end() ? "?" : found->second;
    return compute(stream, speeds().kernel_us, "kernel " + name, &Counters::launches);
}

// Calls `function` behind the work that the stream has been given.
void call_behind(Stream &stream, std::function<void()> function) { at(stream.busy_until, std::move(function)); }

} // namespace

namespace pretended {

cudaError_t compute(cudaStream_t handle, double us, const std::string &name, std::atomic<int64_t> Counters::*counter) {
    Stream &stream = stream_of(handle);
    // A kernel belongs to a context: it cannot be launched in a stream of another device.
    if (stream.device != current_device())
        return remember(cudaErrorInvalidResourceHandle);
    if (stream.capture) {
        counters().captured++;
        stream.capture->kernels++;
    } else {
        (counters().*counter)++;
    }
    work(stream, us, name);
    return cudaSuccess;
}

double matrix_us(double flops) { return std::max(speeds().kernel_us, flops / speeds().gemm_tflops / 1e6); }

Time device_busy_until(int device) {
    Time until = default_stream(device).busy_until;
    for (Stream *stream : streams)
        if (stream->device == device)
            until = std::max(until, stream->busy_until);
    return until;
}

void leave_capture(const Graph *graph) {
    for (Stream *stream : streams)
        if (stream->capture == graph)
            stream->capture = nullptr;
}

} // namespace pretended

// --- kernels, which the compiler of CUDA registers at the start of the program

PRETENDED_EXPORT void **__cudaRegisterFatBinary(void *) {
    static void *handle;
    return &handle;
}
PRETENDED_EXPORT void __cudaRegisterFatBinaryEnd(void **) {}
PRETENDED_EXPORT void __cudaUnregisterFatBinary(void **) {}
PRETENDED_EXPORT char __cudaInitModule(void **) { return 1; }
PRETENDED_EXPORT void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}

PRETENDED_EXPORT void __cudaRegisterFunction(void **, const char *host, char *, const char *name, int, void *, void *,
                                             void *, void *, int *) {
    kernel_names[host] = name;
}

PRETENDED_EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void *>(function));
    return cudaSuccess;
}

PRETENDED_EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st *stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}

PRETENDED_EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    Configuration last = configurations.back();
    configurations.pop_back();
    *grid = last.grid;
    *block = last.block;
    *shared = last.shared;
    *static_cast<cudaStream_t *>(stream) = last.stream;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaLaunchKernel(const void *kernel, dim3, dim3, void **, size_t, cudaStream_t stream) {
    return launch(kernel, stream);
}

PRETENDED_EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void **, size_t, cudaStream_t stream) {
    return launch(kernel, stream);
}

PRETENDED_EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *kernel, void **) {
    return launch(kernel, config->stream);
}

PRETENDED_EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *data) {
    PRETENDED_CALL;
    call_behind(stream_of(handle), [=] { function(data); });
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void *data,
                                                   unsigned) {
    PRETENDED_CALL;
    call_behind(stream_of(handle), [=] { function(handle, cudaSuccess, data); });
    return cudaSuccess;
}

// --- streams

PRETENDED_EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned, int) {
    PRETENDED_CALL;
    streams.push_back(new Stream{current_device(), ++last_stream});
    *handle = reinterpret_cast<cudaStream_t>(streams.back());
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }

PRETENDED_EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned) {
    return cudaStreamCreateWithPriority(handle, 0, 0);
}

PRETENDED_EXPORT cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

PRETENDED_EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t, int *priority) {
    *priority = 0;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamQuery(cudaStream_t handle) {
    Stream &stream = stream_of(handle);
    PRETENDED_CALL_ON(stream.device);
    if (cudaError_t error = forbidden_by_capture(&stream))
        return remember(error);
    return stream.busy_until <= now() ? cudaSuccess : cudaErrorNotReady;
}

PRETENDED_EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
    Time until;
    {
        Stream &stream = stream_of(handle);
        PRETENDED_CALL_ON(stream.device);
        if (cudaError_t error = forbidden_by_capture(&stream))
            return remember(error);
        control().counters[stream.device].stream_syncs++;
        log(stream, "synchronise stream");
        until = stream.busy_until;
    }
    wait_until(until);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t waited, unsigned) {
    Stream &stream = stream_of(handle);
    PRETENDED_CALL_ON(stream.device);
    Event &event = event_of(waited);
    log(stream, "wait event " + std::to_string(event.number));
    if (Graph *graph = active_capture(event.capture))
        stream.capture = graph; // the capture goes on in this stream, too
    else
        stream.busy_until = std::max(stream.busy_until, event.at);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceSynchronize() {
    Time until;
    {
        PRETENDED_CALL;
        if (cudaError_t error = forbidden_by_capture())
            return remember(error);
        counters().device_syncs++;
        log(current_device(), "synchronise device");
        until = device_busy_until(current_device());
    }
    wait_until(until);
    return cudaSuccess;
}

// --- events

PRETENDED_EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned) {
    PRETENDED_CALL;
    *handle = reinterpret_cast<cudaEvent_t>(new Event{current_device(), ++last_event});
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaEventCreate(cudaEvent_t *handle) { return cudaEventCreateWithFlags(handle, 0); }

PRETENDED_EXPORT cudaError_t cudaEventDestroy(cudaEvent_t handle) {
    Lock lock(mutex);
    delete &event_of(handle);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned) {
    Event &event = event_of(handle);
    Stream &stream = stream_of(stream_handle);
    PRETENDED_CALL_ON(stream.device);
    if (event.device != stream.device)
        return remember(cudaErrorInvalidResourceHandle);
    control().counters[stream.device].event_records++;
    log(stream, "record event " + std::to_string(event.number));
    event.at = std::max(stream.busy_until, now());
    event.capture = stream.capture ? stream.capture->id : 0;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream) {
    return cudaEventRecordWithFlags(handle, stream, 0);
}

PRETENDED_EXPORT cudaError_t cudaEventQuery(cudaEvent_t handle) {
    Event &event = event_of(handle);
    PRETENDED_CALL_ON(event.device);
    if (cudaError_t error = forbidden_by_capture())
        return remember(error);
    control().counters[event.device].event_queries++;
    return event.at <= now() ? cudaSuccess : cudaErrorNotReady;
}

PRETENDED_EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
    Time until;
    {
        Event &event = event_of(handle);
        PRETENDED_CALL_ON(event.device);
        if (cudaError_t error = forbidden_by_capture())
            return remember(error);
        control().counters[event.device].event_syncs++;
        log(event.device, "synchronise event " + std::to_string(event.number));
        until = event.at;
    }
    wait_until(until);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    PRETENDED_CALL_ON(event_of(start).device);
    *milliseconds = (event_of(end).at - event_of(start).at) / 1e6f;
    return cudaSuccess;
}
