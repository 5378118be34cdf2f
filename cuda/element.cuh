// Elements of arrays, and vectors of them that are read and written at once.

__device__ __forceinline__ float to_real(float value) { return value; }
__device__ __forceinline__ double to_real(double value) { return value; }
#if TABLE_IS_FLOAT16
__device__ __forceinline__ float to_real(__half value) { return __half2float(value); }
#elif TABLE_IS_BFLOAT16
__device__ __forceinline__ float to_real(__nv_bfloat16 value) { return __bfloat162float(value); }
#endif

template <class Element, int COUNT>
struct alignas(COUNT * sizeof(Element)) Vector {
    Element at[COUNT];
};
