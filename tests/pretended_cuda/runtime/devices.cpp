// The devices: two A10Gs, or as many as PRETENDED_CUDA_DEVICES says, and what torch asks about kernels, peers and pools.

#include "runtime.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace pretended;

namespace {

// An A10G, as cudaGetDeviceProperties describes it.
constexpr int capability_major = 8, capability_minor = 6;
constexpr int multiprocessors = 80, threads_per_block = 1024, threads_per_multiprocessor = 1536, warp = 32;
constexpr int registers = 65536, shared_per_block = 49152, shared_optin = 101376, shared_per_multiprocessor = 102400;
constexpr int l2_bytes = 6291456, bus_bits = 384, blocks_per_multiprocessor = 16, texture_alignment = 512;
constexpr int grid_x = 2147483647, grid_yz = 65535, block_z = 64;

bool hidden() {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    return visible && (!*visible || strcmp(visible, "-1") == 0);
}

// The error of calls that need a driver and a device, but no context.
cudaError_t absence() {
    if (control().gone)
        return static_cast<cudaError_t>(control().gone.load());
    if (control().driver < 13000)
        return cudaErrorInsufficientDriver;
    return hidden() ? cudaErrorNoDevice : cudaSuccess;
}

} // namespace

PRETENDED_EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    if (cudaError_t error = absence())
        return remember(error);
    *count = control().devices;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGetDevice(int *device) {
    if (cudaError_t error = absence())
        return remember(error);
    *device = current_device();
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaSetDevice(int device) {
    if (cudaError_t error = absence())
        return remember(error);
    if (device < 0 || device >= control().devices)
        return remember(cudaErrorInvalidDevice);
    PRETENDED_CALL_ON(device);
    current_device() = device;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device) {
    if (cudaError_t error = absence())
        return remember(error);
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "NVIDIA A10G");
    memset(&properties->uuid, device + 1, sizeof properties->uuid);
    properties->major = capability_major;
    properties->minor = capability_minor;
    properties->multiProcessorCount = multiprocessors;
    properties->totalGlobalMem = control().memory_limit[device];
    properties->maxThreadsPerBlock = threads_per_block;
    properties->maxThreadsPerMultiProcessor = threads_per_multiprocessor;
    properties->maxBlocksPerMultiProcessor = blocks_per_multiprocessor;
    properties->warpSize = warp;
    properties->regsPerBlock = properties->regsPerMultiprocessor = registers;
    properties->sharedMemPerBlock = shared_per_block;
    properties->sharedMemPerBlockOptin = shared_optin;
    properties->sharedMemPerMultiprocessor = shared_per_multiprocessor;
    properties->l2CacheSize = l2_bytes;
    properties->memoryBusWidth = bus_bits;
    properties->maxGridSize[0] = grid_x;
    properties->maxGridSize[1] = properties->maxGridSize[2] = grid_yz;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = threads_per_block;
    properties->maxThreadsDim[2] = block_z;
    properties->textureAlignment = texture_alignment;
    properties->unifiedAddressing = properties->canMapHostMemory = properties->concurrentKernels = 1;
    properties->asyncEngineCount = 2;
    properties->pciBusID = device + 1;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
    if (cudaError_t error = absence())
        return remember(error);
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = threads_per_block; break;
    case cudaDevAttrMultiProcessorCount: *value = multiprocessors; break;
    case cudaDevAttrWarpSize: *value = warp; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = threads_per_multiprocessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = capability_major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = capability_minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = shared_per_block; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = shared_optin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = shared_per_multiprocessor; break;
    case cudaDevAttrMaxGridDimX: *value = grid_x; break;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ: *value = grid_yz; break;
    case cudaDevAttrL2CacheSize: *value = l2_bytes; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = registers; break;
    default: *value = 1; // mostly whether the device can do something
    }
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int device) {
    snprintf(text, size, "0000:%02x:00.0", device + 1);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = control().driver;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

// Functions of the driver, from the libcuda beside this library.
PRETENDED_EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                              unsigned long long flags,
                                                              cudaDriverEntryPointQueryResult *result) {
    using Find = int (*)(const char *, void **, int, unsigned long, int *);
    static Find find = [] {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW);
        return driver ? reinterpret_cast<Find>(dlsym(driver, "cuGetProcAddress_v2")) : nullptr;
    }();
    if (!find)
        return remember(cudaErrorInsufficientDriver);
    find(name, function, version, flags, nullptr);
    if (result)
        *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

// --- kernels: as many threads and as much shared memory as the device has

PRETENDED_EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = threads_per_block;
    attributes->numRegs = 32;
    attributes->binaryVersion = attributes->ptxVersion = 10 * capability_major + capability_minor;
    attributes->maxDynamicSharedSizeBytes = shared_optin;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int,
                                                                                    size_t, unsigned) {
    *blocks = 2;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *, cudaJitOption *, void **,
                                                 unsigned, cudaLibraryOption *, void **, unsigned) {
    *library = reinterpret_cast<cudaLibrary_t>(1);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t, const char *name) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<char *>(name));
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    *address = const_cast<void *>(symbol);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
    *pool = reinterpret_cast<cudaMemPool_t>(1);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *value) {
    *static_cast<size_t *>(value) = 0;
    return cudaSuccess;
}

// --- calls that do nothing here

#define NOTHING(name, ...)                                                                                             \
    PRETENDED_EXPORT cudaError_t name(__VA_ARGS__) { return cudaSuccess; }
NOTHING(cudaFuncSetAttribute, const void *, cudaFuncAttribute, int)
NOTHING(cudaKernelSetAttributeForDevice, cudaKernel_t, cudaFuncAttribute, int, int)
NOTHING(cudaLibraryUnload, cudaLibrary_t)
NOTHING(cudaDeviceEnablePeerAccess, int, unsigned)
NOTHING(cudaMemcpyToSymbol, const void *, const void *, size_t, size_t, cudaMemcpyKind)
NOTHING(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void *)
NOTHING(cudaMemPoolSetAccess, cudaMemPool_t, const cudaMemAccessDesc *, size_t)
NOTHING(cudaMemPoolTrimTo, cudaMemPool_t, size_t)
NOTHING(cudaProfilerStart, void)
NOTHING(cudaProfilerStop, void)
