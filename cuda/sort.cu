// For every pair, the samples of a chunk as records (record.cuh) in the order of their cells;
// samples of the same cell keep their order: a stable radix sort in shared memory.
//
// The order of the cells (i, j): even i before odd i, then by i, then by j. Cells of even i share
// no node row, nor do those of odd i, so that backward.cu can treat each half in one launch. Cells
// of one variable are a single row of cells j, which is even. A key is the number of a cell in this
// order; it has PASSES digits below DIGITS, least significant first, and only one unless G is
// large.
//
// Block    one pair at a time.
// Warp     a run of neighbouring places, 32 at a time; has its own counts of digits, so that the
//          place of a sample follows from the counts of lower digits, of earlier warps, and of
//          earlier samples of its own.
// Reads    x: twice, once for the keys and once in the order of the records.
// Writes   sorted_samples, fractions: neighbouring lanes write neighbouring records; evens.
// Order    integers only; no place depends on which thread comes first.
//
// A place is a position in the sorted order.
//
// Shared memory, added up in backward_pass.py, too: the counts, 2 bytes for each warp and digit;
// the first place of each digit, 4 bytes (both for an even number of digits); 4 bytes per warp;
// then arrays [chunk]: the keys, 2 bytes (4 for more than 65536 cells); the sample of each place, 2 bytes, of one
// pass and of the next.
#include "grid.cuh"
#include "lanes.cuh"
#include "record.cuh"

constexpr int THREADS = WARPS * LANES;
constexpr int WORDS = (DIGITS + 1) / 2;
constexpr int DIGITS_OF_THREAD = (DIGITS + THREADS - 1) / THREADS;
constexpr int AT_ONCE = 4;  // samples of a thread whose x is on its way
constexpr int EVEN_ROWS = DIMENSION > 1 ? (NUM_GRIDS + 1) / 2 : 1;

template <bool WIDE>
struct Unsigned {
    using type = unsigned short;
};
template <>
struct Unsigned<true> {
    using type = unsigned;
};
using Key = Unsigned<(NUM_CELLS > 65536)>::type;

__device__ __forceinline__ Key key_of(Intervals intervals) {
#if DIMENSION == 1
    return static_cast<Key>(intervals.at[0]);
#else
    const int i = intervals.at[0], j = intervals.at[1];
    return static_cast<Key>((i / 2 + i % 2 * EVEN_ROWS) * NUM_GRIDS + j);
#endif
}

__device__ __forceinline__ Intervals intervals_of_key(Key key) {
#if DIMENSION == 1
    return {{key}};
#else
    const int rank = key / NUM_GRIDS, j = key % NUM_GRIDS;
    return {{rank < EVEN_ROWS ? 2 * rank : 2 * (rank - EVEN_ROWS) + 1, j}};
#endif
}

__device__ __forceinline__ bool is_even(Key key) { return key < EVEN_ROWS * NUM_GRIDS; }

// Counts of two digits in one word, each below 65536: the even digit's in its low half.
struct Counts {
    unsigned words[WORDS];

    __device__ __forceinline__ void add(int digit, int number) {
        atomicAdd(&words[digit / 2], static_cast<unsigned>(number) << digit % 2 * 16);
    }
    __device__ __forceinline__ int of(int digit) const {
        return words[digit / 2] >> digit % 2 * 16 & 0xffffu;
    }
};

// The sum of the values of all lower threads.
__device__ __forceinline__ int sum_of_lower_threads(int value, int* of_warp) {
    int sum = value;
    for (int offset = 1; offset < LANES; offset *= 2) {
        const int lower = __shfl_up_sync(ALL_LANES, sum, offset);
        if (lane_index() >= offset) sum += lower;
    }
    if (lane_index() == LANES - 1) of_warp[threadIdx.x / LANES] = sum;
    __syncthreads();
    for (int warp = 0; warp < static_cast<int>(threadIdx.x / LANES); ++warp) sum += of_warp[warp];
    __syncthreads();
    return sum - value;
}

// Turns the counts of a warp into those of earlier warps, and sets `first` to the place of the
// first sample with each digit.
__device__ __forceinline__ void counts_to_places(Counts* counts, int* first, int* of_warp) {
    for (int word = threadIdx.x; word < WORDS; word += THREADS) {
        unsigned sum = 0;
        for (int warp = 0; warp < WARPS; ++warp) {
            const unsigned count = counts[warp].words[word];
            counts[warp].words[word] = sum;
            sum += count;
        }
        first[2 * word] = sum & 0xffffu;
        first[2 * word + 1] = sum >> 16;
    }
    __syncthreads();
    const int begin = min(static_cast<int>(threadIdx.x) * DIGITS_OF_THREAD, DIGITS);
    const int end = min(begin + DIGITS_OF_THREAD, DIGITS);
    int own = 0;
    for (int digit = begin; digit < end; ++digit) own += first[digit];
    int place = sum_of_lower_threads(own, of_warp);
    for (int digit = begin; digit < end; ++digit) {
        const int count = first[digit];
        first[digit] = place;
        place += count;
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
sort_by_cell(const REAL* __restrict__ x, int* __restrict__ sorted_samples,
             REAL* __restrict__ fractions, int* __restrict__ evens, long long first_sample,
             long long count, long long chunk, long long in_features) {
    extern __shared__ unsigned words[];
    Counts* counts = reinterpret_cast<Counts*>(words);
    int* first = reinterpret_cast<int*>(counts + WARPS);
    int* of_warp = first + 2 * WORDS;
    Key* keys = reinterpret_cast<Key*>(of_warp + WARPS);
    unsigned short* sample_at = reinterpret_cast<unsigned short*>(keys + chunk);
    unsigned short* next_sample_at = sample_at + (PASSES > 1 ? chunk : 0);
    const int lane = lane_index(), warp = threadIdx.x / LANES;
    const int size = static_cast<int>(count);
    const int run = (size + THREADS - 1) / THREADS * LANES;
    const int begin = min(warp * run, size), end = min(begin + run, size);
    const REAL* chunk_x = x + first_sample * in_features;

    for (long long pair = blockIdx.x; pair < pairs_of(in_features); pair += gridDim.x) {
        const auto point_at = [&](int sample) {
            const REAL* row = chunk_x + sample * in_features;
#if IN_VECTORS
            const PerAxis both = reinterpret_cast<const PerAxis*>(row)[pair];
            return Point{both.at[0], both.at[1]};
#else
            return point_of(row, pair, in_features);
#endif
        };
#pragma unroll AT_ONCE
        for (int sample = threadIdx.x; sample < size; sample += THREADS) {
            keys[sample] = key_of(intervals_of(point_at(sample)));
        }
        unsigned unit = 1;  // of the digit
        for (int pass = 0; pass < PASSES; ++pass, unit *= DIGITS) {
            const auto sample_of = [&](int place) { return pass == 0 ? place : sample_at[place]; };
            const auto digit_of = [&](int sample) {
                return static_cast<int>(PASSES > 1 ? keys[sample] / unit % DIGITS : keys[sample]);
            };
            for (int word = lane; word < WORDS; word += LANES) counts[warp].words[word] = 0;
            __syncthreads();
            for (int place = begin + lane; place < end; place += LANES) {
                counts[warp].add(digit_of(sample_of(place)), 1);
            }
            __syncthreads();
            counts_to_places(counts, first, of_warp);

            for (int place = begin; place < end; place += LANES) {
                const bool active = place + lane < end;
                const int sample = active ? sample_of(place + lane) : 0;
                const int digit = active ? digit_of(sample) : DIGITS;
                const unsigned equals = __match_any_sync(ALL_LANES, digit);
                const int before = __popc(equals & ((1u << lane) - 1u));
                if (active) {
                    const int next = first[digit] + counts[warp].of(digit);
                    next_sample_at[next + before] = static_cast<unsigned short>(sample);
                }
                __syncwarp();
                if (active && before == 0) counts[warp].add(digit, __popc(equals));
                __syncwarp();
            }
            __syncthreads();
            unsigned short* written = next_sample_at;
            next_sample_at = sample_at;
            sample_at = written;
        }

        int2* own_samples = reinterpret_cast<int2*>(sorted_samples) + pair * chunk;
        PerAxis* own_fractions = reinterpret_cast<PerAxis*>(fractions) + pair * chunk;
#pragma unroll AT_ONCE
        for (int place = threadIdx.x; place < size; place += THREADS) {
            const int sample = sample_at[place];
            const Point point = point_at(sample);
            const Key key = keys[sample];
            const Intervals intervals = intervals_of_key(key);
            own_samples[place] = make_int2(sample, cell_of(intervals));
            own_fractions[place] = fractions_of(point, intervals);
            const bool last = place + 1 == size || !is_even(keys[sample_at[place + 1]]);
            if (is_even(key) && last) evens[pair] = place + 1;
            if (!is_even(key) && place == 0) evens[pair] = 0;
        }
        __syncthreads();
    }
}
