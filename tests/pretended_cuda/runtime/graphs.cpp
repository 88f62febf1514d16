// Capture of a stream's work into a graph, and its replay.

#include "runtime.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace pretended {

namespace {

thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
std::vector<Graph *> active;
unsigned long long last_id = 0;

uint64_t thread() { return syscall(SYS_gettid); }

cudaError_t begin(Stream &stream, Graph *graph, cudaStreamCaptureMode mode) {
    if (stream.capture)
        return remember(cudaErrorIllegalState);
    graph->mode = mode;
    graph->id = ++last_id;
    graph->thread = thread();
    stream.capture = graph;
    active.push_back(graph);
    log(stream, "begin capture");
    return cudaSuccess;
}

} // namespace

// CUDA's rule: a call such as cudaMalloc or cudaEventQuery, which may touch what a capture records, is forbidden to all
// threads while a capture in global mode runs, and to a capture's own thread unless it is in relaxed mode. A thread may
// exempt itself.
cudaError_t forbidden_by_capture(const Stream *stream) {
    bool forbidden = false;
    if (stream && stream->capture)
        forbidden = stream->capture->invalid = true;
    for (Graph *graph : active) {
        bool global = graph->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
        bool own = graph->thread == thread() && graph->mode != cudaStreamCaptureModeRelaxed &&
                   thread_mode != cudaStreamCaptureModeRelaxed;
        if (global || own)
            forbidden = graph->invalid = true;
    }
    return forbidden ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

Graph *active_capture(unsigned long long id) {
    for (Graph *graph : active)
        if (graph->id == id)
            return graph;
    return nullptr;
}

} // namespace pretended

using namespace pretended;

namespace {

Graph *graph_of(void *handle) { return static_cast<Graph *>(handle); }

} // namespace

PRETENDED_EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
    PRETENDED_CALL;
    return begin(stream_of(handle), new Graph, mode);
}

PRETENDED_EXPORT cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t handle, cudaGraph_t graph,
                                                           const cudaGraphNode_t *, const cudaGraphEdgeData *, size_t,
                                                           cudaStreamCaptureMode mode) {
    PRETENDED_CALL;
    return begin(stream_of(handle), graph_of(graph), mode);
}

PRETENDED_EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *result) {
    PRETENDED_CALL;
    Stream &stream = stream_of(handle);
    Graph *graph = stream.capture;
    if (!graph)
        return remember(cudaErrorIllegalState);
    leave_capture(graph);
    active.erase(std::find(active.begin(), active.end(), graph));
    if (control().failing_captures > 0) {
        control().failing_captures--;
        graph->invalid = true;
    }
    if (graph->invalid) {
        counters().failed_captures++;
        log(stream, "end capture: invalid");
        *result = nullptr;
        delete graph;
        return remember(cudaErrorStreamCaptureInvalidated);
    }
    counters().captures++;
    log(stream, "end capture: " + std::to_string(graph->kernels) + " kernels");
    *result = reinterpret_cast<cudaGraph_t>(graph);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
    Lock lock(mutex);
    Graph *graph = stream_of(handle).capture;
    *status = !graph           ? cudaStreamCaptureStatusNone
              : graph->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status,
                                                      unsigned long long *id, cudaGraph_t *graph,
                                                      const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                                      size_t *count) {
    Lock lock(mutex);
    Graph *capture = stream_of(handle).capture;
    cudaStreamIsCapturing(handle, status);
    if (id)
        *id = capture ? capture->id : 0;
    if (graph)
        *graph = reinterpret_cast<cudaGraph_t>(capture);
    if (nodes)
        *nodes = nullptr;
    if (edges)
        *edges = nullptr;
    if (count)
        *count = 0;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
    std::swap(thread_mode, *mode);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaStreamUpdateCaptureDependencies(cudaStream_t, cudaGraphNode_t *,
                                                                 const cudaGraphEdgeData *, size_t, unsigned) {
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                                           unsigned long long) {
    PRETENDED_CALL;
    // A copy, as torch destroys the graph or keeps it, apart from what it launches.
    *executable = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(graph)));
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t handle) {
    PRETENDED_CALL;
    Stream &stream = stream_of(handle);
    Graph *graph = graph_of(executable);
    counters().graph_launches++;
    for (const Copy &copy : graph->copies)
        copy_now(copy, stream);
    work(stream, graph->us, "graph of " + std::to_string(graph->kernels) + " kernels");
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    Lock lock(mutex);
    delete graph_of(graph);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
    Lock lock(mutex);
    delete graph_of(executable);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char *, unsigned) { return cudaSuccess; }

PRETENDED_EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count) {
    *count = graph_of(graph)->kernels + graph_of(graph)->copies.size();
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t, cudaGraphNode_t *, cudaGraphEdgeData *,
                                                          size_t *count) {
    *count = 0;
    return cudaSuccess;
}
