// A warp's tile of a row of outputs, and the tasks of the warps of a grid.
//
// The preamble defines LANE_OUTPUTS, outputs of a tile per lane, and WARPS, the warps of a block.
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
