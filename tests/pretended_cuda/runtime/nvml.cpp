// libnvidia-ml.so.1. torch counts devices with it, also where the driver is too old for CUDA, and asks it for processes
// when memory runs out. Declared here, as torch brings no header of it.

#include "runtime.h"

using namespace pretended;

namespace {
constexpr int success = 0, not_supported = 3;
}

PRETENDED_EXPORT int nvmlInit() { return success; }
PRETENDED_EXPORT int nvmlInit_v2() { return success; }
PRETENDED_EXPORT int nvmlShutdown() { return success; }

PRETENDED_EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = control().devices;
    return success;
}

PRETENDED_EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = control().driver;
    return success;
}

PRETENDED_EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned, void **handle) {
    *handle = nullptr;
    return success;
}

PRETENDED_EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *, void **handle) {
    *handle = nullptr;
    return success;
}

PRETENDED_EXPORT int nvmlDeviceGetComputeRunningProcesses(void *, unsigned *count, void *) {
    *count = 0;
    return success;
}

PRETENDED_EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType() { return not_supported; }
PRETENDED_EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2() { return not_supported; }
PRETENDED_EXPORT int nvmlDeviceGetGpuFabricInfoV() { return not_supported; }
