// The lanes of a warp.

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return threadIdx.x % LANES; }
