// cuBLAS and cuBLASLt: a GEMM takes as long as its floating-point operations do.

#include "runtime.h"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstring>
#include <map>

using namespace pretended;

namespace {

struct Handle {
    cudaStream_t stream = nullptr;
};

struct Layout {
    double rows = 0, columns = 0;
    int batch = 1;
};

std::map<const void *, Layout> layouts;
std::map<const void *, bool> transposed; // whether a product transposes its left matrix

template <typename Opaque> Opaque opaque() { return reinterpret_cast<Opaque>(new char); }

void free_opaque(void *handle) { delete static_cast<char *>(handle); }

cublasStatus_t gemm(cudaStream_t stream, double m, double n, double k, double batch, const char *name) {
    Lock lock(mutex);
    if (failure(current_device()))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    bool failed = compute(stream, matrix_us(2 * m * n * k * batch), name, &Counters::gemms);
    return failed ? CUBLAS_STATUS_EXECUTION_FAILED : CUBLAS_STATUS_SUCCESS;
}

cudaStream_t stream_in(cublasHandle_t handle) { return reinterpret_cast<Handle *>(handle)->stream; }

} // namespace

#define EXPORT PRETENDED_EXPORT cublasStatus_t
#define NOTHING(name, ...)                                                                                             \
    EXPORT name(__VA_ARGS__) { return CUBLAS_STATUS_SUCCESS; }

EXPORT cublasCreate_v2(cublasHandle_t *handle) {
    Lock lock(mutex);
    if (failure(current_device()))
        return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = reinterpret_cast<cublasHandle_t>(new Handle);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasSetStream_v2(cublasHandle_t handle, cudaStream_t stream) {
    reinterpret_cast<Handle *>(handle)->stream = stream;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasGetMathMode(cublasHandle_t, cublasMath_t *mode) {
    *mode = CUBLAS_DEFAULT_MATH;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t *mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

NOTHING(cublasDestroy_v2, cublasHandle_t)
NOTHING(cublasSetWorkspace_v2, cublasHandle_t, void *, size_t)
NOTHING(cublasSetMathMode, cublasHandle_t, cublasMath_t)
NOTHING(cublasSetPointerMode_v2, cublasHandle_t, cublasPointerMode_t)

EXPORT cublasGemmEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k, const void *,
                    const void *, cudaDataType, int, const void *, cudaDataType, int, const void *, void *,
                    cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return gemm(stream_in(handle), m, n, k, 1, "gemmEx");
}

EXPORT cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                  const void *, const void *, cudaDataType, int, long long, const void *, cudaDataType,
                                  int, long long, const void *, void *, cudaDataType, int, long long, int batch,
                                  cublasComputeType_t, cublasGemmAlgo_t) {
    return gemm(stream_in(handle), m, n, k, batch, "gemmStridedBatchedEx");
}

EXPORT cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k, const float *,
                      const float *, int, const float *, int, const float *, float *, int) {
    return gemm(stream_in(handle), m, n, k, 1, "sgemm");
}

EXPORT cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t, cublasOperation_t, int m, int n, int k,
                                 const float *, const float *, int, long long, const float *, int, long long,
                                 const float *, float *, int, long long, int batch) {
    return gemm(stream_in(handle), m, n, k, batch, "sgemmStridedBatched");
}

// --- cuBLASLt

PRETENDED_EXPORT size_t cublasLtGetVersion() { return 130101; }

EXPORT cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *product, cublasComputeType_t, cudaDataType_t) {
    Lock lock(mutex);
    *product = opaque<cublasLtMatmulDesc_t>();
    transposed[*product] = false;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t product, cublasLtMatmulDescAttributes_t attribute,
                                      const void *value, size_t) {
    Lock lock(mutex);
    if (attribute == CUBLASLT_MATMUL_DESC_TRANSA)
        transposed[product] = *static_cast<const int *>(value) != CUBLAS_OP_N;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
    Lock lock(mutex);
    transposed.erase(product);
    free_opaque(product);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType, uint64_t rows, uint64_t columns,
                                  int64_t) {
    Lock lock(mutex);
    *layout = opaque<cublasLtMatrixLayout_t>();
    layouts[*layout] = {static_cast<double>(rows), static_cast<double>(columns)};
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute,
                                        const void *value, size_t) {
    Lock lock(mutex);
    if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT)
        layouts[layout].batch = *static_cast<const int *>(value);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    Lock lock(mutex);
    layouts.erase(layout);
    free_opaque(layout);
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = opaque<cublasLtMatmulPreference_t>();
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    free_opaque(preference);
    return CUBLAS_STATUS_SUCCESS;
}

NOTHING(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t, cublasLtMatmulPreferenceAttributes_t,
        const void *, size_t)

EXPORT cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                      cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                      cublasLtMatmulPreference_t, int, cublasLtMatmulHeuristicResult_t results[],
                                      int *count) {
    memset(results, 0, sizeof *results);
    *count = 1;
    return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t product, const void *, const void *,
                      cublasLtMatrixLayout_t a, const void *, cublasLtMatrixLayout_t, const void *, const void *,
                      cublasLtMatrixLayout_t, void *, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t *, void *,
                      size_t, cudaStream_t stream) {
    Lock lock(mutex);
    double k = transposed[product] ? layouts[a].rows : layouts[a].columns;
    return gemm(stream, layouts[d].rows, layouts[d].columns, k, layouts[d].batch, "ltMatmul");
}
