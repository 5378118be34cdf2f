// A stretch of the sorted samples of a pair, and what a warp keeps of it in shared memory.
#include "record.cuh"
#include "stencil.cuh"
#include "warp.cuh"

constexpr int IN_FLIGHT = 4;  // rows of grad_y on their way while one is worked on
constexpr int GROUP = LANES / 2;  // samples whose slopes are summed over the lanes at a time
constexpr int PITCH = LANES + 16 / sizeof(PerAxis);  // reads of neighbouring rows hit different banks

// Sets of cells that share no rows.
constexpr int HALVES = DIMENSION > 1 ? 2 : 1;

// The sorted samples of a pair from begin to end: one of `number` equal parts of a half.
struct Range {
    int begin, end;

    __device__ __forceinline__ Range(int index, int number, int half, int evens, int count) {
        const int first = half == 1 ? evens : 0;
        const int size = (half == 0 ? evens : count) - first;
        begin = first + index * size / number;
        end = first + (index + 1) * size / number;
    }
};

// What all lanes need of a sample, prepared by one of them.
struct alignas(16) Prepared {
    REAL weight[CORNERS];
    PerAxis mixed_factor;      // of R - L in the two brackets: v, u, or with DIRECTION b, a
    long long bytes_to_fetch;  // where grad_y of the sample IN_FLIGHT places later begins
    int cell;
#if DIRECTION && LAYER
    PerAxis layer_factor;  // v, u
#endif
};

// `real` is false for a sample beyond the end of a stretch: its weights are 0.
__device__ __forceinline__ void prepare(Prepared& prepared, Record record, bool real,
                                        const REAL* direction, long long pair,
                                        long long in_features) {
    const Stencil stencil = stencil_in(intervals_of_cell(record.cell), record.fraction, direction,
                                       pair, in_features);
#pragma unroll
    for (int corner = 0; corner < CORNERS; ++corner) {
        prepared.weight[corner] = real ? stencil.weights.corner[corner] : 0;
    }
    prepared.cell = record.cell;
    prepared.mixed_factor = stencil.mixed;
#if DIRECTION && LAYER
    prepared.layer_factor = mixed_factors(record.fraction);
#endif
}

// Each lane's part of the slopes of GROUP samples.
struct alignas(16) Parts {
    PerAxis of[GROUP][PITCH];

    // Sums the parts of each of `samples` samples: lanes l and GROUP + l return that of sample l.
    __device__ __forceinline__ PerAxis total(int samples) const {
        struct alignas(16) Several {
            PerAxis at[16 / sizeof(PerAxis)];
        };
        const PerAxis* half =
            of[min(lane_index() % GROUP, samples - 1)] + lane_index() / GROUP * GROUP;
        PerAxis sum = {};
#pragma unroll 2
        for (int k = 0; k < GROUP; k += 16 / sizeof(PerAxis)) {
            const Several several = *reinterpret_cast<const Several*>(half + k);
#pragma unroll
            for (const PerAxis& part : several.at) {
#pragma unroll
                for (int axis = 0; axis < DIMENSION; ++axis) sum.at[axis] += part.at[axis];
            }
        }
#pragma unroll
        for (int axis = 0; axis < DIMENSION; ++axis) {
            sum.at[axis] += __shfl_xor_sync(ALL_LANES, sum.at[axis], GROUP);
        }
        return sum;
    }
};

// A warp's stretch, the samples that it works on, and at the end the sums of its last cell. All
// this lies in shared memory, because registers limit the number of warps.
struct Work {
    int pair, tile, part, end;
    int last_cell;  // -1 for a stretch without samples
    Record record[LANES];
    Prepared prepared[LANES];
    union {
        Parts parts;
        REAL last[CORNERS][TILE];
    };
};
