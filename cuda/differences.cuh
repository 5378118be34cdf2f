// The differences of a cell's rows, and the slopes from them: a sample's gradient of x in units of
// the cell; see backward.cu.
#include "row_vectors.cuh"
#include "stencil.cuh"

#if DIRECTION
using LAYER_TABLE = REAL;
#else
using LAYER_TABLE = TABLE;
#endif

__device__ __forceinline__ REAL dot(const REAL (&a)[LANE_OUTPUTS], const REAL (&b)[LANE_OUTPUTS]) {
    REAL sum = 0;
#pragma unroll
    for (int k = 0; k < LANE_OUTPUTS; ++k) sum += a[k] * b[k];
    return sum;
}

#if DIMENSION == 1
// A of a cell.
struct Differences {
    REAL across[LANE_OUTPUTS];

    __device__ __forceinline__ void load(const LAYER_TABLE* rows, bool, const Share& share,
                                         long long out_features) {
        REAL row_0[LANE_OUTPUTS] = {}, row_1[LANE_OUTPUTS] = {};
        share.read(rows, row_0);
        share.read(rows + corner_offset(1, out_features), row_1);
#pragma unroll
        for (int k = 0; k < LANE_OUTPUTS; ++k) across[k] = row_1[k] - row_0[k];
    }

    __device__ __forceinline__ PerAxis slopes(const REAL (&g)[LANE_OUTPUTS], PerAxis) const {
        return {{dot(g, across)}};
    }
};

// The slope of a function of one variable is constant in a cell.
struct MixedDifference {
    __device__ __forceinline__ void load(const TABLE*, const Share&, long long) {}

    __device__ __forceinline__ void add_slopes(const REAL (&)[LANE_OUTPUTS], PerAxis,
                                               PerAxis&) const {}
};
#else
// L, R and A of a cell.
struct Differences {
    REAL left[LANE_OUTPUTS], right[LANE_OUTPUTS], across[LANE_OUTPUTS];

    // `rows` is the lane's first output of row 0; `next_to_it`: the cell before was the left
    // neighbour.
    __device__ __forceinline__ void load(const LAYER_TABLE* rows, bool next_to_it,
                                         const Share& share, long long out_features) {
        REAL row_0[LANE_OUTPUTS] = {}, row_1[LANE_OUTPUTS] = {}, row_3[LANE_OUTPUTS] = {};
        share.read(rows, row_0);
        share.read(rows + corner_offset(1, out_features), row_1);
        share.read(rows + corner_offset(3, out_features), row_3);
        if (next_to_it) {
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) left[k] = right[k];
        } else {
            REAL row_2[LANE_OUTPUTS] = {};
            share.read(rows + corner_offset(2, out_features), row_2);
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) left[k] = row_2[k] - row_0[k];
        }
#pragma unroll
        for (int k = 0; k < LANE_OUTPUTS; ++k) {
            right[k] = row_3[k] - row_1[k];
            across[k] = row_1[k] - row_0[k];
        }
    }

    // `factor`: of R - L in the two brackets.
    __device__ __forceinline__ PerAxis slopes(const REAL (&g)[LANE_OUTPUTS], PerAxis factor) const {
        const REAL along = dot(g, left);
        const REAL mixed = dot(g, right) - along;
        return {{along + factor.at[0] * mixed, dot(g, across) + factor.at[1] * mixed}};
    }
};

// R - L of a cell.
struct MixedDifference {
    REAL mixed[LANE_OUTPUTS];

    __device__ __forceinline__ void load(const TABLE* rows, const Share& share,
                                         long long out_features) {
        REAL row[CORNERS][LANE_OUTPUTS] = {};
#pragma unroll
        for (int n = 0; n < CORNERS; ++n) share.read(rows + corner_offset(n, out_features), row[n]);
#pragma unroll
        for (int k = 0; k < LANE_OUTPUTS; ++k) {
            mixed[k] = (row[3][k] - row[1][k]) - (row[2][k] - row[0][k]);
        }
    }

    __device__ __forceinline__ void add_slopes(const REAL (&g)[LANE_OUTPUTS], PerAxis factor,
                                               PerAxis& slopes) const {
        const REAL along = dot(g, mixed);
        slopes.at[0] += factor.at[0] * along;
        slopes.at[1] += factor.at[1] * along;
    }
};
#endif
