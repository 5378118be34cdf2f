// A lane's share of a row of O outputs, in vectors, each one access of up to 16 bytes: of a tile of
// 32 LANE_OUTPUTS outputs that begins at `first`, lane l has the VECTOR outputs from
// first + l VECTOR on, those from first + (32 + l) VECTOR on, ...
//
// The preamble defines VECTOR. It divides O, and every row begins at a whole vector (1 always
// works), so a vector lies wholly inside its row or wholly beyond it.
#include "warp.cuh"

constexpr int VECTORS = LANE_OUTPUTS / VECTOR;

struct Share {
    long long begin;  // the lane's first output
    bool inside[VECTORS];

    __device__ __forceinline__ Share(long long first, long long out_features)
        : begin(first + lane_index() * VECTOR) {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) inside[k] = begin + k * LANES * VECTOR < out_features;
    }

    // `row` is the lane's first output of a row; values beyond the row stay as they are.
    template <class Element>
    __device__ __forceinline__ void read(const Element* row, REAL (&value)[LANE_OUTPUTS]) const {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            if (inside[k]) {
                const auto vector =
                    reinterpret_cast<const Vector<Element, VECTOR>*>(row)[k * LANES];
#pragma unroll
                for (int n = 0; n < VECTOR; ++n) value[k * VECTOR + n] = to_real(vector.at[n]);
            }
        }
    }

    __device__ __forceinline__ void write(REAL* row, const REAL (&value)[LANE_OUTPUTS]) const {
#pragma unroll
        for (int k = 0; k < VECTORS; ++k) {
            if (inside[k]) {
                Vector<REAL, VECTOR> vector;
#pragma unroll
                for (int n = 0; n < VECTOR; ++n) vector.at[n] = value[k * VECTOR + n];
                reinterpret_cast<Vector<REAL, VECTOR>*>(row)[k * LANES] = vector;
            }
        }
    }
};
