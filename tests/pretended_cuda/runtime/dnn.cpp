// cuDNN's backend, as its frontend calls it: descriptors are kept, and a plan takes as long as its convolution does.

#include "runtime.h"

#include <cudnn.h>

#include <map>
#include <vector>

using namespace pretended;

namespace {

struct Handle {
    cudaStream_t stream = nullptr;
};

struct Descriptor {
    cudnnBackendDescriptorType_t type;
    std::map<int, std::vector<int64_t>> numbers;
    std::map<int, std::vector<Descriptor *>> parts;
};

constexpr int graph_of_heuristics = -1; // an attribute of our own: from an engine's configuration to its operations
constexpr int deepest = 8;

Descriptor *own(cudnnBackendDescriptor_t handle) { return static_cast<Descriptor *>(handle); }

double elements(Descriptor *tensor) {
    double product = 1;
    for (int64_t size : tensor->numbers[CUDNN_ATTR_TENSOR_DIMENSIONS])
        product *= size;
    return product;
}

// The part of this type, at any depth.
Descriptor *find(Descriptor *whole, cudnnBackendDescriptorType_t type, int depth = 0) {
    if (!whole || depth > deepest)
        return nullptr;
    if (whole->type == type)
        return whole;
    for (auto &[attribute, parts] : whole->parts)
        for (Descriptor *part : parts)
            if (Descriptor *found = find(part, type, depth + 1))
                return found;
    return nullptr;
}

double convolution_us(Descriptor *convolution) {
    Descriptor *weights = convolution->parts[CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W][0];
    Descriptor *result = convolution->parts[CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y][0];
    double channels = weights->numbers[CUDNN_ATTR_TENSOR_DIMENSIONS][0];
    return matrix_us(2 * elements(result) * elements(weights) / channels);
}

} // namespace

#define EXPORT PRETENDED_EXPORT cudnnStatus_t

EXPORT cudnnCreate(cudnnHandle_t *handle) {
    Lock lock(mutex);
    if (failure(current_device()))
        return CUDNN_STATUS_NOT_INITIALIZED;
    *handle = reinterpret_cast<cudnnHandle_t>(new Handle);
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnDestroy(cudnnHandle_t) { return CUDNN_STATUS_SUCCESS; }

EXPORT cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    reinterpret_cast<Handle *>(handle)->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnGetStream(cudnnHandle_t handle, cudaStream_t *stream) {
    *stream = reinterpret_cast<Handle *>(handle)->stream;
    return CUDNN_STATUS_SUCCESS;
}

PRETENDED_EXPORT const char *cudnnGetErrorString(cudnnStatus_t status) {
    return status == CUDNN_STATUS_SUCCESS ? "CUDNN_STATUS_SUCCESS" : "CUDNN_STATUS_EXECUTION_FAILED";
}

PRETENDED_EXPORT void cudnnGetLastErrorString(char *text, size_t) { *text = 0; }

EXPORT cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *handle) {
    *handle = new Descriptor{type, {}, {}};
    return CUDNN_STATUS_SUCCESS;
}

// Plans refer to descriptors that the frontend has destroyed, so none is freed.
EXPORT cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }

EXPORT cudnnBackendFinalize(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }

EXPORT cudnnBackendSetAttribute(cudnnBackendDescriptor_t handle, cudnnBackendAttributeName_t name,
                                cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    if (type == CUDNN_TYPE_INT64) {
        auto numbers = static_cast<const int64_t *>(values);
        own(handle)->numbers[name].assign(numbers, numbers + count);
    } else if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        auto parts = static_cast<Descriptor *const *>(values);
        own(handle)->parts[name].assign(parts, parts + count);
    }
    return CUDNN_STATUS_SUCCESS;
}

// One engine is offered for each graph of operations. It needs no workspace, and all its numbers are 0.
EXPORT cudnnBackendGetAttribute(cudnnBackendDescriptor_t const handle, cudnnBackendAttributeName_t name,
                                cudnnBackendAttributeType_t type, int64_t count, int64_t *found, void *values) {
    int64_t there = 0;
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
        there = 1;
        if (count > 0 && values)
            if (Descriptor *configuration = static_cast<Descriptor **>(values)[0])
                configuration->parts[graph_of_heuristics] = own(handle)->parts[CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH];
    } else if (type == CUDNN_TYPE_INT64) {
        there = 1;
        if (count > 0 && values)
            *static_cast<int64_t *>(values) = 0;
    } else if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        there = name == CUDNN_ATTR_ENGINECFG_ENGINE;
    } else if (type == CUDNN_TYPE_CHAR && count == 1 && values) {
        *static_cast<char *>(values) = 0;
    }
    if (found)
        *found = there;
    return CUDNN_STATUS_SUCCESS;
}

EXPORT cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t) {
    Lock lock(mutex);
    if (failure(current_device()))
        return CUDNN_STATUS_EXECUTION_FAILED;
    Descriptor *convolution = find(own(plan), CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    double us = convolution ? convolution_us(convolution) : speeds().unknown_us;
    cudaStream_t stream = reinterpret_cast<Handle *>(handle)->stream;
    bool failed = compute(stream, us, convolution ? "convolution" : "plan of cuDNN", &Counters::convolutions);
    return failed ? CUDNN_STATUS_EXECUTION_FAILED : CUDNN_STATUS_SUCCESS;
}
