// Memory and copies.
//
// Device memory is address space that cannot be read: it holds nothing, since kernels compute nothing. So a copy to the
// host fills it with bytes of value 1, when the stream has got that far. The exception are small uploads: a copy to the
// host of exactly the range that an upload of at most `remembered` bytes wrote returns these bytes, also through copies
// within the device. A kernel that overwrites such a range is not noticed.

#include "runtime.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>

namespace pretended {
namespace {

constexpr size_t remembered = 4096;
constexpr size_t granularity = 2 << 20; // of device memory
constexpr size_t page = 4096;
constexpr int64_t context_bytes = 400000000;
constexpr double d2d_gbs = 300;
constexpr double d2d_us = 2, copy_us = 5; // what a copy takes in addition

struct Block {
    size_t bytes;
    int device;
};

std::map<const char *, Block> device_blocks;
std::map<const char *, Block> host_blocks;
std::map<const char *, std::string> contents; // of device memory, by address

const Block *find(const std::map<const char *, Block> &blocks, const void *address) {
    const char *wanted = static_cast<const char *>(address);
    auto next = blocks.upper_bound(wanted);
    if (next == blocks.begin())
        return nullptr;
    auto found = std::prev(next);
    return wanted < found->first + found->second.bytes ? &found->second : nullptr;
}

void forget(const char *start, size_t bytes) {
    auto each = contents.lower_bound(start - remembered);
    while (each != contents.end() && each->first < start + bytes) {
        bool overlaps = each->first + each->second.size() > start;
        each = overlaps ? contents.erase(each) : std::next(each);
    }
}

void store(void *to, const char *bytes, size_t count) {
    forget(static_cast<char *>(to), count);
    if (bytes && count && count <= remembered)
        contents[static_cast<char *>(to)] = std::string(bytes, count);
}

// What device memory holds, by value; empty if that is not known.
std::string load(const void *from, size_t count) {
    auto found = contents.find(static_cast<const char *>(from));
    return found != contents.end() && found->second.size() == count ? found->second : std::string();
}

void arrive(void *to, const std::string &bytes, size_t count) {
    if (bytes.empty())
        memset(to, 1, count);
    else
        memcpy(to, bytes.data(), count);
}

} // namespace

void copy_now(const Copy &copy, Stream &stream) {
    auto [to, from, bytes] = copy;
    const Block *to_device = find(device_blocks, to), *from_device = find(device_blocks, from);
    double host_us = bytes / speeds().copy_gbs / 1000 + copy_us;
    std::string size = std::to_string(bytes) + " bytes";
    Counters &counted = control().counters[stream.device];
    if (to_device && from_device) {
        counted.copies_d2d++;
        work(stream, bytes / d2d_gbs / 1000 + d2d_us, "copy_d2d " + size);
        std::string held = load(from, bytes);
        store(to, held.empty() ? nullptr : held.data(), bytes);
    } else if (to_device) {
        counted.copies_h2d++;
        work(stream, host_us, "copy_h2d " + size);
        store(to, static_cast<const char *>(from), bytes);
    } else if (from_device) {
        counted.copies_d2h++;
        work(stream, host_us, "copy_d2h " + size);
        std::string held = load(from, bytes);
        at(stream.busy_until, [to = to, bytes = bytes, held, device = stream.device] {
            arrive(to, held, bytes);
            log(device, "arrived " + std::to_string(bytes) + " bytes");
        });
    } else {
        memmove(to, from, bytes);
    }
}

} // namespace pretended

using namespace pretended;

namespace {

cudaError_t copy(void *to, const void *from, size_t bytes, cudaStream_t handle, bool async) {
    Time until = 0;
    {
        Stream &stream = stream_of(handle);
        PRETENDED_CALL_ON(stream.device);
        bool to_device = find(device_blocks, to), from_device = find(device_blocks, from);
        bool pinned = find(host_blocks, to_device ? from : to);
        bool waits = !async || (from_device && !to_device && !pinned);
        if (stream.capture) {
            if (waits || (!pinned && to_device != from_device)) {
                stream.capture->invalid = true;
                return remember(cudaErrorStreamCaptureUnsupported);
            }
            stream.capture->copies.push_back({to, from, bytes});
            return cudaSuccess;
        }
        if (waits)
            if (cudaError_t error = forbidden_by_capture(&stream))
                return remember(error);
        Counters &counted = control().counters[stream.device];
        if (to_device && !from_device && !pinned && async)
            counted.pageable_h2d++;
        if (from_device && !to_device && !pinned)
            counted.pageable_d2h++;
        copy_now({to, from, bytes}, stream);
        if (waits)
            until = stream.busy_until;
    }
    if (until)
        wait_until(until);
    return cudaSuccess;
}

} // namespace

PRETENDED_EXPORT cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    PRETENDED_CALL;
    if (cudaError_t error = forbidden_by_capture())
        return remember(error);
    Counters &counted = counters();
    counted.mallocs++;
    bytes = (bytes + granularity - 1) / granularity * granularity;
    if (counted.allocated + static_cast<int64_t>(bytes) > control().memory_limit[current_device()])
        return remember(cudaErrorMemoryAllocation);
    void *memory = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return remember(cudaErrorMemoryAllocation);
    device_blocks[static_cast<char *>(memory)] = {bytes, current_device()};
    counted.allocated += bytes;
    *pointer = memory;
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaFree(void *pointer) {
    if (!pointer)
        return cudaSuccess;
    Time until;
    {
        PRETENDED_CALL;
        if (cudaError_t error = forbidden_by_capture())
            return remember(error);
        counters().frees++;
        until = device_busy_until(current_device());
    }
    wait_until(until);
    Lock lock(mutex);
    auto found = device_blocks.find(static_cast<char *>(pointer));
    if (found == device_blocks.end())
        return remember(cudaErrorInvalidValue);
    forget(found->first, found->second.bytes);
    munmap(pointer, found->second.bytes);
    control().counters[found->second.device].allocated -= found->second.bytes;
    device_blocks.erase(found);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) {
    return cudaMalloc(pointer, bytes);
}

PRETENDED_EXPORT cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return cudaFree(pointer); }

PRETENDED_EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
    PRETENDED_CALL;
    if (cudaError_t error = forbidden_by_capture())
        return remember(error);
    counters().host_allocations++;
    *pointer = aligned_alloc(page, (bytes + page - 1) / page * page);
    if (!*pointer)
        return remember(cudaErrorMemoryAllocation);
    host_blocks[static_cast<char *>(*pointer)] = {bytes, current_device()};
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaFreeHost(void *pointer) {
    Lock lock(mutex);
    host_blocks.erase(static_cast<char *>(pointer));
    free(pointer);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned) {
    PRETENDED_CALL;
    host_blocks[static_cast<char *>(pointer)] = {bytes, current_device()};
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaHostUnregister(void *pointer) {
    Lock lock(mutex);
    host_blocks.erase(static_cast<char *>(pointer));
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    PRETENDED_CALL;
    int64_t limit = control().memory_limit[current_device()];
    *total = limit;
    *available = std::max<int64_t>(0, limit - counters().allocated - context_bytes);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
    PRETENDED_CALL;
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    if (const Block *block = find(device_blocks, pointer)) {
        attributes->type = cudaMemoryTypeDevice;
        attributes->device = block->device;
        attributes->devicePointer = const_cast<void *>(pointer);
    } else if (find(host_blocks, pointer)) {
        attributes->type = cudaMemoryTypeHost;
        attributes->hostPointer = attributes->devicePointer = const_cast<void *>(pointer);
    }
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t s) {
    return copy(to, from, bytes, s, true);
}

PRETENDED_EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return copy(to, from, bytes, nullptr, false);
}

PRETENDED_EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t s) {
    return copy(to, from, bytes, s, true);
}

PRETENDED_EXPORT cudaError_t cudaMemset(void *pointer, int, size_t bytes) {
    PRETENDED_CALL;
    forget(static_cast<char *>(pointer), bytes);
    return cudaSuccess;
}

PRETENDED_EXPORT cudaError_t cudaMemsetAsync(void *pointer, int, size_t bytes, cudaStream_t handle) {
    Stream &stream = stream_of(handle);
    PRETENDED_CALL_ON(stream.device);
    forget(static_cast<char *>(pointer), bytes);
    if (!stream.capture)
        control().counters[stream.device].memsets++;
    work(stream, speeds().kernel_us / 2, "memset " + std::to_string(bytes) + " bytes");
    return cudaSuccess;
}
