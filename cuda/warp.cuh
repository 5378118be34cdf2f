// A warp's tile of a row of outputs. The preamble defines LANE_OUTPUTS, outputs of a tile per lane.
#include "element.cuh"
#include "lanes.cuh"

constexpr int TILE = LANES * LANE_OUTPUTS;
