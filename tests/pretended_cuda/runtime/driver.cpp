// libcuda.so.1, the driver's own interface: what Triton's launcher and torch's NVRTC stub link against.

#include "runtime.h"

#include <dlfcn.h>

#include <cstring>

using namespace pretended;

extern "C" cudaError_t cudaGetDevice(int *);
extern "C" cudaError_t cudaDeviceGetAttribute(int *, cudaDeviceAttr, int);

namespace {

CUcontext context_of(int device) { return reinterpret_cast<CUcontext>(static_cast<intptr_t>(device + 1)); }

CUresult failure_here() { return static_cast<CUresult>(failure(current_device())); }

CUresult launch(const char *name, CUstream stream) {
    Lock lock(mutex);
    if (CUresult error = failure_here())
        return error;
    return static_cast<CUresult>(
        compute(stream, speeds().triton_us, std::string("kernel ") + name, &Counters::launches));
}

CUresult unsupported() { return CUDA_ERROR_NOT_SUPPORTED; }

} // namespace

#define EXPORT extern "C" __attribute__((visibility("default"))) CUresult

EXPORT cuInit(unsigned) { return control().driver < 13000 ? CUDA_ERROR_SYSTEM_DRIVER_MISMATCH : CUDA_SUCCESS; }

EXPORT cuDriverGetVersion(int *version) {
    *version = control().driver;
    return CUDA_SUCCESS;
}

EXPORT cuDeviceGet(CUdevice *device, int ordinal) {
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT cuDeviceGetCount(int *count) {
    *count = control().devices;
    return CUDA_SUCCESS;
}

// The attributes of both interfaces have the same numbers.
EXPORT cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    return static_cast<CUresult>(cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(attribute), device));
}

EXPORT cuDeviceGetName(char *name, int size, CUdevice) {
    strncpy(name, "NVIDIA A10G", size);
    return CUDA_SUCCESS;
}

EXPORT cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    *bytes = control().memory_limit[device];
    return CUDA_SUCCESS;
}

EXPORT cuCtxGetCurrent(CUcontext *context) {
    *context = context_of(current_device());
    return CUDA_SUCCESS;
}

EXPORT cuCtxGetDevice(CUdevice *device) { return static_cast<CUresult>(cudaGetDevice(device)); }

EXPORT cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    *context = context_of(device);
    return static_cast<CUresult>(failure(device));
}

EXPORT cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
    *flags = 0;
    *active = control().counters[device].calls > 0;
    return CUDA_SUCCESS;
}

// A function is its name, for the log.
EXPORT cuModuleGetFunction(CUfunction *function, CUmodule, const char *name) {
    *function = reinterpret_cast<CUfunction>(strdup(name));
    return CUDA_SUCCESS;
}

EXPORT cuModuleLoad(CUmodule *module, const char *) {
    *module = reinterpret_cast<CUmodule>(1);
    return failure_here();
}

EXPORT cuModuleLoadData(CUmodule *module, const void *) { return cuModuleLoad(module, nullptr); }

EXPORT cuModuleLoadDataEx(CUmodule *module, const void *, unsigned, CUjit_option *, void **) {
    return cuModuleLoad(module, nullptr);
}

EXPORT cuLaunchKernel(CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                      CUstream stream, void **, void **) {
    return launch(reinterpret_cast<const char *>(function), stream);
}

EXPORT cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **, void **) {
    return launch(reinterpret_cast<const char *>(function), config->hStream);
}

EXPORT cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction) {
    switch (attribute) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; break;
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
    default: *value = 0; // shared and local memory
    }
    return CUDA_SUCCESS;
}

EXPORT cuGetErrorString(CUresult, const char **text) {
    *text = "an error of the pretended driver";
    return CUDA_SUCCESS;
}

EXPORT cuGetErrorName(CUresult, const char **text) { return cuGetErrorString(CUDA_SUCCESS, text); }

EXPORT cuPointerGetAttribute(void *value, CUpointer_attribute, CUdeviceptr pointer) {
    *static_cast<CUdeviceptr *>(value) = pointer;
    return CUDA_SUCCESS;
}

EXPORT cuOccupancyMaxActiveClusters(int *clusters, CUfunction, const CUlaunchConfig *) {
    *clusters = 1;
    return CUDA_SUCCESS;
}

// A request for a function that is not here is answered with one that says so.
EXPORT cuGetProcAddress_v2(const char *name, void **function, int, cuuint64_t, CUdriverProcAddressQueryResult *result) {
    static void *self = dlopen("libcuda.so.1", RTLD_NOW);
    void *found = dlsym(self, name);
    *function = found ? found : reinterpret_cast<void *>(unsupported);
    if (result)
        *result = CU_GET_PROC_ADDRESS_SUCCESS;
    return CUDA_SUCCESS;
}
