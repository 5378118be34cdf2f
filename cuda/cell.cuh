// Adds what a cell contributes to sums in float: its four rows, 16 bytes of each, times weights.
//
//     float       4 outputs in 16 bytes, multiplied in float
//     bfloat16    8 outputs, each the upper half of a float: the same arithmetic
//     float16     8 outputs, interpolated two at a time in half precision
#include "stencil.cuh"
#include "tile.cuh"

constexpr int QUADS = CHUNK_OUTPUTS / 4;  // float4 that hold the sums of a chunk

__device__ __forceinline__ void add_product(float4& sum, float weight, float4 value) {
    sum.x += weight * value.x;
    sum.y += weight * value.y;
    sum.z += weight * value.z;
    sum.w += weight * value.w;
}

#if TABLE_IS_FLOAT16
// Weights divided by `scale`, a power of two of at least twice the sum of their sizes: so no
// product and no sum can leave the range of half precision, however far outside the grid a sample
// lies, unless the result does not fit into a float either.
struct Factors {
    __half2 lower, upper;  // corners 0 and 1, 2 and 3
    float scale;

    __device__ __forceinline__ __half2 of(int corner) const {
        const __half2 pair = corner < 2 ? lower : upper;
        return corner % 2 ? __high2half2(pair) : __low2half2(pair);
    }
};

__device__ __forceinline__ Factors factors_of(Weights weights) {
    float size = 0;
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) size += fabsf(weights.corner[corner]);
    // Inside the grid the size is 1, to rounding, and the scale 2. Beyond the limit, the inverse
    // would be too small for a float.
    const unsigned exponent =
        (__float_as_uint(fminf(size, 0x1p125f)) + 0x01000000u - 16u) & 0x7f800000u;
    const float inverse = __uint_as_float(0x7f000000u - exponent);
    const float* weight = weights.corner;
    return {__floats2half2_rn(weight[0] * inverse, weight[1] * inverse),
            __floats2half2_rn(weight[2] * inverse, weight[3] * inverse),
            __uint_as_float(exponent)};
}

// `row(corner)` reads the chunk of a row.
template <class Row>
__device__ __forceinline__ void add_cell(float4* sum, const Factors& factors, Row row) {
    __half2 value[4];
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) {
        const float4 chunk = row(corner);
        const __half2* pair = reinterpret_cast<const __half2*>(&chunk);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            value[k] = corner == 0 ? __hmul2(factors.of(0), pair[k])
                                   : __hfma2(factors.of(corner), pair[k], value[k]);
        }
    }
#pragma unroll
    for (int k = 0; k < QUADS; ++k) {
        const float2 first = __half22float2(value[2 * k]), last = __half22float2(value[2 * k + 1]);
        add_product(sum[k], factors.scale, {first.x, first.y, last.x, last.y});
    }
}
#else
using Factors = Weights;

__device__ __forceinline__ Factors factors_of(Weights weights) { return weights; }

#if TABLE_IS_BFLOAT16
__device__ __forceinline__ float lower(float word) {
    return __uint_as_float(__float_as_uint(word) << 16);
}

__device__ __forceinline__ float upper(float word) {
    return __uint_as_float(__float_as_uint(word) & 0xffff0000u);
}

__device__ __forceinline__ void add_chunk(float4* sum, float weight, float4 chunk) {
    add_product(sum[0], weight, {lower(chunk.x), upper(chunk.x), lower(chunk.y), upper(chunk.y)});
    add_product(sum[1], weight, {lower(chunk.z), upper(chunk.z), lower(chunk.w), upper(chunk.w)});
}
#else
__device__ __forceinline__ void add_chunk(float4* sum, float weight, float4 chunk) {
    add_product(*sum, weight, chunk);
}
#endif

// `row(corner)` reads the chunk of a row.
template <class Row>
__device__ __forceinline__ void add_cell(float4* sum, const Factors& factors, Row row) {
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) {
        add_chunk(sum, factors.corner[corner], row(corner));
    }
    if (TABLE_IS_BFLOAT16) __syncwarp();  // or chunks are read and widened long before their use
}
#endif
