// In place of CUDA's header, which needs others that torch does not bring. cuBLAS's declarations want the types only.
#pragma once
struct __half {
    unsigned short bits;
};
struct __half2 {
    unsigned short low, high;
};
typedef __half half;
