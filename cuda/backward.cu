// The vector-Jacobian product of the layer, or with DIRECTION of its derivative along X [B, I]:
//
//     dT[p, n, o]  += sum over b of  w_n(b, p) g[b, o]                        (TABLES_GRADIENT)
//     dx[b, 2p]     = 1/h_i sum over o of g[b, o] (D1 + v D12)                (X_GRADIENT)
//     dx[b, 2p + 1] = 1/h_j sum over o of g[b, o] (D2 + u D12)
//
// with the differences of a cell's rows D1 = T[i+1,j] - T[i,j], D2 = T[i,j+1] - T[i,j] and
// D12 = T[i+1,j+1] - T[i+1,j] - D2. With DIRECTION (a, b) = (X1/h_i, X2/h_j) the brackets are b D12
// and a D12.
//
// A warp walks a stretch of the samples of a chunk, sorted by cell (sort.cu): rows and sums of a cell
// stay in registers while its samples pass by. No two warps add to the same table row:
//   - Only the first and the last cell of a stretch can have samples in another stretch. What they
//     sum up goes into slots, and backward_boundaries, the next launch, adds these to the tables.
//   - Any other cell belongs to one stretch, and so does each pair of neighbours (i, j), (i, j+1),
//     which share rows: one warp adds both, one after the other.
//   - Cells (i, j) and (i+1, j) share rows, too: a launch treats the cells of even or of odd i only.
// So a row is read, added to and written without atomics, and always in the same order.
//
//     half 0, 1, 2      the samples in cells of even i; of odd i; all (where dT is not needed)
//     slots             [P, stretches, 2, 4, O]: sums of a stretch's first and last cell
#include "position.cuh"
#include "warp.cuh"

// Places of the sorted samples that one stretch holds: from begin to end, none where begin == end.
struct Stretch {
    int begin, end;
};

__device__ __forceinline__ Stretch stretch_of(long long index, long long length, int evens,
                                              long long count, long long half) {
    const long long half_begin = half == 1 ? evens : 0, half_end = half == 0 ? evens : count;
    const long long begin = min(half_begin + index * length, half_end);
    return {static_cast<int>(begin), static_cast<int>(min(begin + length, half_end))};
}

// The lane's part of the sums over samples of a cell: what they give to each of its rows.
struct CellSums {
    REAL row[CORNERS][LANE_OUTPUTS];

    // To the rows of the cell in the tables' gradient.
    __device__ __forceinline__ void add_to(REAL* rows, long long first,
                                           long long out_features) const {
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            REAL* target = rows + corner_offset(corner, out_features);
            for_own_outputs(first, out_features,
                            [&](int k, long long o) { target[o] += row[corner][k]; });
        }
    }

    // A slot is [4, O].
    __device__ __forceinline__ void store(REAL* slot, long long first,
                                          long long out_features) const {
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            REAL* target = slot + corner * out_features;
            for_own_outputs(first, out_features,
                            [&](int k, long long o) { target[o] = row[corner][k]; });
        }
    }

    __device__ __forceinline__ void add(const REAL* slot, long long first, long long out_features) {
#pragma unroll
        for (int corner = 0; corner < CORNERS; ++corner) {
            const REAL* source = slot + corner * out_features;
            for_own_outputs(first, out_features,
                            [&](int k, long long o) { row[corner][k] += source[o]; });
        }
    }
};

// D1, D2 and D12 of a cell.
struct Differences {
    REAL along_1[LANE_OUTPUTS], along_2[LANE_OUTPUTS], mixed[LANE_OUTPUTS];

    __device__ __forceinline__ void load(const TABLE* rows, long long first,
                                         long long out_features) {
        for_own_outputs(first, out_features, [&](int k, long long o) {
            REAL corner[CORNERS];
#pragma unroll
            for (int n = 0; n < CORNERS; ++n) {
                corner[n] = to_real(rows[corner_offset(n, out_features) + o]);
            }
            along_1[k] = corner[2] - corner[0];
            along_2[k] = corner[1] - corner[0];
            mixed[k] = corner[3] - corner[2] - along_2[k];
        });
    }
};

// Warp     one stretch of one pair, tile of outputs after tile.
// Lane     locates every 32nd sample, 32 samples at a time by the whole warp, passes position and
//          weights on by shuffles, and stores the slopes of these samples; owns LANE_OUTPUTS outputs.
// Reads    x, X: once per tile. g: once. tables: four rows per cell and stretch.
// Writes   grad_x, or adds to it (accumulate); grad_tables and slots as said above.
// Order    the sums of a cell run over its samples ascending; a slope is summed within a lane, then
//          over lanes by halves, then over tiles ascending.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
backward(const REAL* __restrict__ grad_y, const REAL* __restrict__ x,
         const REAL* __restrict__ direction, const TABLE* __restrict__ tables,
         const int* __restrict__ order, const int* __restrict__ evens, REAL* __restrict__ grad_x,
         REAL* grad_tables, REAL* __restrict__ slots, long long first_sample, long long count,
         long long chunk, long long stretches, long long stretch_length, long long half,
         long long in_features, long long out_features, long long accumulate) {
    const long long pairs = (in_features + 1) / 2;
    const long long table_size = NUM_KNOTS * NUM_KNOTS * out_features;

    for (long long task = first_task(); task < pairs * stretches; task += task_step()) {
        const long long pair = task / stretches;
        const Stretch stretch =
            stretch_of(task % stretches, stretch_length, evens[pair], count, half);
        if (stretch.begin == stretch.end) continue;
        const auto sample_at = [&](int place) { return first_sample + order[pair * chunk + place]; };
        const auto cell_of_place = [&](int place) {
            return cell_of(point_of(x + sample_at(place) * in_features, pair, in_features));
        };
        const int first_cell = cell_of_place(stretch.begin);
        const int last_cell = cell_of_place(stretch.end - 1);

        for (long long first = 0; first < out_features; first += TILE) {
            CellSums sums = {};
            Differences difference = {};
            int cell = -1;
            const auto leave_cell = [&]() {
                if (cell == first_cell || cell == last_cell) {
                    const long long slot = 2 * task + (cell != first_cell);
                    sums.store(slots + slot * CORNERS * out_features, first, out_features);
                } else {
                    sums.add_to(grad_tables + pair * table_size + cell * out_features, first,
                                out_features);
                }
                sums = {};
            };

            for (int begin = stretch.begin; begin < stretch.end; begin += LANES) {
                const int batch = min(stretch.end - begin, LANES);
                const long long own_sample = sample_at(begin + min(lane_index(), batch - 1));
                const long long own_features = own_sample * in_features;
                const Position own =
                    locate(x + own_features, DIRECTION ? direction + own_features : nullptr, pair,
                           in_features);
                REAL own_slope[2] = {};
                for (int n = 0; n < batch; ++n) {
                    const int next_cell = __shfl_sync(ALL_LANES, own.cell, n);
                    if (next_cell != cell) {
                        if (TABLES_GRADIENT && cell >= 0) leave_cell();
                        cell = next_cell;
                        if (X_GRADIENT) {
                            difference.load(tables + pair * table_size + cell * out_features,
                                            first, out_features);
                        }
                    }
                    const REAL* g = grad_y + __shfl_sync(ALL_LANES, own_sample, n) * out_features;
                    REAL weight[CORNERS];
#pragma unroll
                    for (int corner = 0; corner < CORNERS; ++corner) {
                        weight[corner] = __shfl_sync(ALL_LANES, own.weights.corner[corner], n);
                    }
                    REAL dot_1 = 0, dot_2 = 0, dot_mixed = 0;
                    for_own_outputs(first, out_features, [&](int k, long long o) {
                        const REAL value = g[o];
#pragma unroll
                        for (int corner = 0; corner < CORNERS; ++corner) {
                            sums.row[corner][k] += weight[corner] * value;
                        }
                        dot_1 += value * difference.along_1[k];
                        dot_2 += value * difference.along_2[k];
                        dot_mixed += value * difference.mixed[k];
                    });
                    if (X_GRADIENT) {
                        const REAL factor_1 = __shfl_sync(ALL_LANES, own.mixed[0], n);
                        const REAL factor_2 = __shfl_sync(ALL_LANES, own.mixed[1], n);
                        const REAL slope_1 = (DIRECTION ? 0 : dot_1) + factor_1 * dot_mixed;
                        const REAL slope_2 = (DIRECTION ? 0 : dot_2) + factor_2 * dot_mixed;
                        const REAL total_1 = warp_sum(slope_1), total_2 = warp_sum(slope_2);
                        if (lane_index() == n) {
                            own_slope[0] = total_1;
                            own_slope[1] = total_2;
                        }
                    }
                }
                if (X_GRADIENT && lane_index() < batch) {
                    REAL* target = grad_x + own_features + 2 * pair;
                    const bool add = accumulate || first > 0;
                    const int axes = 2 * pair + 1 < in_features ? 2 : 1;
#pragma unroll
                    for (int axis = 0; axis < 2; ++axis) {
                        if (axis == axes) break;
                        const REAL slope = own.scale[axis] * own_slope[axis] + own.poison;
                        target[axis] = add ? target[axis] + slope : slope;
                    }
                }
            }
            if (TABLES_GRADIENT) leave_cell();
        }
    }
}

// Adds the slots to the tables' gradient.
//
// Warp     one pair and one tile of outputs.
// Order    slots by stretch; neighbouring slots of one cell are added up first.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
backward_boundaries(const REAL* __restrict__ x, const int* __restrict__ order,
                    const int* __restrict__ evens, REAL* grad_tables,
                    const REAL* __restrict__ slots, long long first_sample, long long count,
                    long long chunk, long long stretches, long long stretch_length, long long half,
                    long long in_features, long long out_features) {
    const long long pairs = (in_features + 1) / 2;
    const long long table_size = NUM_KNOTS * NUM_KNOTS * out_features;
    const long long tiles = (out_features + TILE - 1) / TILE;

    for (long long task = first_task(); task < pairs * tiles; task += task_step()) {
        const long long pair = task / tiles, first = task % tiles * TILE;
        const auto cell_of_place = [&](int place) {
            const long long sample = first_sample + order[pair * chunk + place];
            return cell_of(point_of(x + sample * in_features, pair, in_features));
        };
        CellSums sums = {};
        int cell = -1;
        const auto leave_cell = [&]() {
            sums.add_to(grad_tables + pair * table_size + cell * out_features, first, out_features);
            sums = {};
        };
        for (long long index = 0; index < stretches; ++index) {
            const Stretch stretch = stretch_of(index, stretch_length, evens[pair], count, half);
            if (stretch.begin == stretch.end) break;
            const int first_cell = cell_of_place(stretch.begin);
            const int last_cell = cell_of_place(stretch.end - 1);
            const int filled = first_cell == last_cell ? 1 : 2;
            for (int end = 0; end < filled; ++end) {
                const int next_cell = end == 0 ? first_cell : last_cell;
                if (cell >= 0 && next_cell != cell) leave_cell();
                cell = next_cell;
                const long long slot = 2 * (pair * stretches + index) + end;
                sums.add(slots + slot * CORNERS * out_features, first, out_features);
            }
        }
        if (cell >= 0) leave_cell();
    }
}
