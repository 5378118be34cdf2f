// A warp and its share of a row of O outputs: of a tile of 32 LANE_OUTPUTS outputs that begins at
// `first`, lane l has the outputs first + l, first + 32 + l, ..., those of them that are below O.
// So every access of a warp is to neighbouring elements, whatever O and the alignment are.
//
// The preamble defines LANE_OUTPUTS and WARPS, the warps of a block.
#include "element.cuh"
#include "lanes.cuh"

constexpr int TILE = LANES * LANE_OUTPUTS;

// Warps of a grid share tasks 0, 1, 2, ... in turn: the first, and the step to the next.
__device__ __forceinline__ long long first_task() {
    return static_cast<long long>(blockIdx.x) * WARPS + threadIdx.x / LANES;
}
__device__ __forceinline__ long long task_step() {
    return static_cast<long long>(gridDim.x) * WARPS;
}

// Calls use(k, o) for the lane's outputs o of a tile; k counts them, known when compiled.
template <class Use>
__device__ __forceinline__ void for_own_outputs(long long first, long long out_features, Use use) {
#pragma unroll
    for (int k = 0; k < LANE_OUTPUTS; ++k) {
        const long long o = first + k * LANES + lane_index();
        if (o < out_features) use(k, o);
    }
}
