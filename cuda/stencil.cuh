// The stencil of a pair of coordinates: the cell that they lie in, and the weights of the table rows
// at its corners.
//
// A node is a knot of each coordinate; its table row has the values of all outputs. The rows of a
// cell (i, j) are numbered 0 .. 3: those of the nodes (i, j), (i, j+1), (i+1, j), (i+1, j+1). Those
// of a cell i of one coordinate are 0 and 1: i, i+1.
//
// The preamble defines DIRECTION: 1 where the layer's derivative in a direction X [B, I] is
// computed instead of the layer.
#include "grid.cuh"

constexpr int CORNERS = 1 << DIMENSION;

// The weights of the rows; with DIRECTION their derivatives along it.
struct Weights {
    REAL corner[CORNERS];
};

__device__ __forceinline__ Weights weights_of(const Hats (&hats)[DIMENSION]) {
#if DIMENSION == 1
    const Hats h = hats[0];
#if DIRECTION
    return {{-h.along, h.along}};
#else
    return {{h.lower, h.upper}};
#endif
#else
    const Hats h1 = hats[0], h2 = hats[1];
#if DIRECTION
    return {{-h1.along * h2.lower - h2.along * h1.lower, h2.along * h1.lower - h1.along * h2.upper,
             h1.along * h2.lower - h2.along * h1.upper, h1.along * h2.upper + h2.along * h1.upper}};
#else
    return {{h1.lower * h2.lower, h1.lower * h2.upper, h1.upper * h2.lower, h1.upper * h2.upper}};
#endif
#endif
}

// The factors of g . (R - L) in the slopes, see backward.cu, from the positions in a cell, or with
// DIRECTION from their derivatives along it. Functions of one variable have no such term.
__device__ __forceinline__ PerAxis mixed_factors(PerAxis of) {
#if DIMENSION == 1
    return {};
#else
    return {{of.at[1], of.at[0]}};
#endif
}

struct Stencil {
    int cell;         // number of the node at the lower corner of the cell
    Weights weights;  // of the rows
    PerAxis mixed;    // factors of the slopes
};

// The stencil of a sample at the position `at` in a cell; `direction` is the sample's, [I].
__device__ __forceinline__ Stencil stencil_in(Intervals intervals, PerAxis at,
                                              const REAL* direction, long long pair,
                                              long long in_features) {
    PerAxis along = {};  // the derivative of `at` along the direction
#if DIRECTION
    const Point point = point_of(direction, pair, in_features);
#pragma unroll
    for (int axis = 0; axis < DIMENSION; ++axis) {
        along.at[axis] = point.x[axis] * GRID[intervals.at[axis]][1];
    }
#endif
    Hats hats[DIMENSION];
#pragma unroll
    for (int axis = 0; axis < DIMENSION; ++axis) {
        hats[axis] = hats_at(at.at[axis], along.at[axis]);
    }
    return {cell_of(intervals), weights_of(hats), mixed_factors(DIRECTION ? along : at)};
}

// The stencil of a pair of one sample; `x` and `direction` are the sample's, [I].
__device__ __forceinline__ Stencil locate(const REAL* x, const REAL* direction, long long pair,
                                          long long in_features) {
    const Point point = point_of(x, pair, in_features);
    const Intervals intervals = intervals_of(point);
    return stencil_in(intervals, fractions_of(point, intervals), direction, pair, in_features);
}

// The number of elements from row 0 of a cell to the row of a corner.
__device__ __forceinline__ long long corner_offset(int corner, long long out_features) {
    return (DIMENSION > 1 ? (corner >> 1) * NUM_KNOTS + (corner & 1) : corner) * out_features;
}
