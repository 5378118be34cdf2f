// A warp and its share of a row of O outputs: of a tile of 32 LANE_OUTPUTS outputs that begins at
// `first`, lane l has the outputs first + l, first + 32 + l, ..., those of them that are below O.
// So every access of a warp is to neighbouring elements, whatever O and the alignment are.
//
// The preamble defines LANE_OUTPUTS and WARPS, the warps of a block.

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int TILE = LANES * LANE_OUTPUTS;

__device__ __forceinline__ int lane_index() { return threadIdx.x % LANES; }

// Warps of a grid share tasks 0, 1, 2, ... in turn: the first, and the step to the next.
__device__ __forceinline__ long long first_task() {
    return static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / LANES;
}
__device__ __forceinline__ long long task_step() {
    return static_cast<long long>(gridDim.x) * WARPS;
}

__device__ __forceinline__ float to_real(float value) { return value; }
__device__ __forceinline__ double to_real(double value) { return value; }
#if TABLE_IS_FLOAT16
__device__ __forceinline__ float to_real(__half value) { return __half2float(value); }
#elif TABLE_IS_BFLOAT16
__device__ __forceinline__ float to_real(__nv_bfloat16 value) { return __bfloat162float(value); }
#endif

// Calls use(k, o) for the lane's outputs o of a tile; k counts them, known when compiled.
template <class Use>
__device__ __forceinline__ void for_own_outputs(long long first, long long out_features, Use use) {
#pragma unroll
    for (int k = 0; k < LANE_OUTPUTS; ++k) {
        const long long o = first + k * LANES + lane_index();
        if (o < out_features) use(k, o);
    }
}

__device__ __forceinline__ REAL warp_sum(REAL value) {
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(ALL_LANES, value, offset);
    }
    return value;
}
