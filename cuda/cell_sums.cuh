// Sums over the samples of a cell, and adding them to the tables' gradient; see backward.cu.
#include "row_vectors.cuh"
#include "stencil.cuh"

// The lane's part of the sums over the samples of a cell, for each of its rows. Even corners are the
// left node column, odd ones the right one.
struct CellSums {
    REAL row[CORNERS][LANE_OUTPUTS];

    __device__ __forceinline__ void clear(int column) {
#pragma unroll
        for (int n = column; n < CORNERS; n += 2) {
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) row[n][k] = 0;
        }
    }

    // The right column becomes the left one.
    __device__ __forceinline__ void shift() {
#pragma unroll
        for (int n = 0; n < CORNERS; n += 2) {
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) row[n][k] = row[n + 1][k];
        }
        clear(1);
    }

    // Adds a column to rows of the tables' gradient; `rows` is the lane's first output of row 0.
    __device__ __forceinline__ void add_column_to(REAL* rows, int column, const Share& share,
                                                  long long out_features) const {
        REAL sum[CORNERS][LANE_OUTPUTS];
#pragma unroll
        for (int n = column; n < CORNERS; n += 2) {
            share.read(rows + corner_offset(n, out_features), sum[n]);
        }
#pragma unroll
        for (int n = column; n < CORNERS; n += 2) {
#pragma unroll
            for (int k = 0; k < LANE_OUTPUTS; ++k) sum[n][k] += row[n][k];
            share.write(rows + corner_offset(n, out_features), sum[n]);
        }
    }
};

// Adds up, for one output, what stretches have left: the sums of their last cells, cell by cell.
struct Merger {
    REAL* own_table;  // the output in the first row of the pair's gradient
    int cell = -1;    // none
    REAL row[CORNERS] = {};

    // Leaves a cell for the next, or for none (-1), and adds the sums of the old one to the
    // gradient. After that the caller adds to `row`.
    __device__ __forceinline__ void enter(int next_cell, long long out_features) {
        if (next_cell == cell) return;
        const bool neighbours = cell >= 0 && next_cell == cell + 1;
        if (cell >= 0) {
            REAL* rows = own_table + cell * out_features;
#pragma unroll
            for (int corner = 0; corner < CORNERS; ++corner) {
                const bool shared = neighbours && corner % 2 == 1;
                if (!shared) rows[corner_offset(corner, out_features)] += row[corner];
            }
        }
#pragma unroll
        for (int corner = 0; corner < CORNERS; corner += 2) {
            row[corner] = neighbours ? row[corner + 1] : 0;
            row[corner + 1] = 0;
        }
        cell = next_cell;
    }
};
