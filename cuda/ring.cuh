// A ring of tiles in shared memory: while a block reads one, the next are on their way.
//
//     fill     starts copying the next tile, once every warp has left the stage it goes to
//     wait     until the tile of the pair is there
//     leave    this warp has read the tile
//
// Each stage has two barriers in shared memory (mbarrier), whose phases end when all that they
// expect has arrived: `full` expects the bytes of a tile, `empty` an arrival from every warp.
//
//                     fill              full                  empty
//     stage:    free -------> on its way -----> read by warps ------> free
//
// So no barrier of the whole block holds back a warp. With three or more stages one is slack
// (AHEAD): a warp that fills need not wait for those that are still at the tile before.
//
// From sm_90 on a packed tile is one bulk copy, which one thread starts. From sm_80 on every thread
// copies chunks of 16 bytes, which arrive at `full`. Older devices have neither: there, copies are
// plain and barriers are those of the block.
//
// Tables are [P, S, S, O], or PACKED by pack.cu: [P, tiles, SLOTS, OUTPUTS], a tile as it is here.
// Sources: PTX ISA, sections on mbarrier, cp.async and cp.async.bulk.
#include "tile.cuh"

constexpr int THREADS = WARPS * 32;
constexpr int AHEAD = STAGES > 2 ? STAGES - 2 : 1;
static_assert(STAGES >= 2, "a stage to read and one to fill");

#define HAS_BARRIERS (__CUDA_ARCH__ >= 800)
#define HAS_BULK_COPIES (__CUDA_ARCH__ >= 900 && PACKED)

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ float4 load_16_bytes(unsigned shared) {
    float4 value;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "r"(shared));
    return value;
}

#if !HAS_BARRIERS
__device__ __forceinline__ void copy_16_bytes(unsigned shared, const void* global) {
    const float4 value = *static_cast<const float4*>(global);
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(shared), "f"(value.x),
                 "f"(value.y), "f"(value.z), "f"(value.w)
                 : "memory");
}
#else
__device__ __forceinline__ void copy_16_bytes(unsigned shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared), "l"(global) : "memory");
}

__device__ __forceinline__ void start_barrier(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier)
                 : "memory");
}

// Waits until the last phase of this parity has ended; before the first phase, one of parity 1 has.
__device__ __forceinline__ void wait_for_phase(unsigned barrier, unsigned parity) {
    unsigned ended;
    do {
#if __CUDA_ARCH__ >= 900
        asm volatile(
            "{ .reg .pred ended; mbarrier.try_wait.parity.shared.b64 ended, [%1], %2; "
            "selp.u32 %0, 1, 0, ended; }"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
#else
        asm volatile(
            "{ .reg .pred ended; mbarrier.test_wait.parity.shared.b64 ended, [%1], %2; "
            "selp.u32 %0, 1, 0, ended; }"
            : "=r"(ended)
            : "r"(barrier), "r"(parity)
            : "memory");
#endif
    } while (!ended);
}

// Arrives at the barrier when all copies that this thread has started are there.
__device__ __forceinline__ void arrive_with_copies(unsigned barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
#endif

#if HAS_BULK_COPIES
// Makes barriers known to the copy engine.
__device__ __forceinline__ void show_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive_expecting(unsigned barrier, int bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                     barrier),
                 "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_tile(unsigned shared, const void* global, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" ::"r"(shared),
        "l"(global), "r"(TILE_BYTES), "r"(barrier)
        : "memory");
}
#endif

// Makes the compiler recompute the stage of tile n: that costs less than a register to keep it.
__device__ __forceinline__ void forget(int& n) { asm volatile("" : "+r"(n)::"memory"); }

struct Ring {
    static constexpr int BYTES = STAGES * (TILE_BYTES + 16);

    unsigned tiles, full, empty;  // shared addresses: of the first stage, and of its barriers

    // `memory` has BYTES bytes of shared memory, at a multiple of 128. Called by all threads.
    __device__ __forceinline__ explicit Ring(unsigned memory)
        : tiles(memory), full(memory + STAGES * TILE_BYTES), empty(full + STAGES * 8) {
#if HAS_BARRIERS
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < STAGES; ++stage) {
                start_barrier(full + stage * 8, HAS_BULK_COPIES ? 1 : THREADS);
                start_barrier(empty + stage * 8, WARPS);
            }
#if HAS_BULK_COPIES
            show_barriers();
#endif
        }
#endif
        __syncthreads();
    }

    // Starts copying tile number n from `source`, its first element. Called by all threads.
    __device__ __forceinline__ void fill(int n, const Value* source, long long out_features) const {
        forget(n);
        const int stage = n % STAGES;
        const unsigned target = tiles + stage * TILE_BYTES;
#if HAS_BULK_COPIES
        if (threadIdx.x == n % WARPS * 32) {  // in turn: each start costs a warp some time
            wait_for_phase(empty + stage * 8, (n / STAGES ^ 1) & 1);
            arrive_expecting(full + stage * 8, TILE_BYTES);
            copy_tile(target, source, full + stage * 8);
        }
        __syncwarp();
#else
#if HAS_BARRIERS
        wait_for_phase(empty + stage * 8, (n / STAGES ^ 1) & 1);
#endif
        constexpr int COUNT = (PACKED ? SLOTS : NUM_KNOTS * NUM_KNOTS) * CHUNKS;
#pragma unroll 1
        for (int k = threadIdx.x; k < COUNT; k += THREADS) {
            const int row = k / CHUNKS, chunk = k % CHUNKS;
            const int slot = PACKED ? row : slot_of(row / NUM_KNOTS, row % NUM_KNOTS);
            copy_16_bytes(target + slot * ROW_BYTES + chunk * 16,
                          source + row * (PACKED ? OUTPUTS : out_features) + chunk * CHUNK_OUTPUTS);
        }
#if HAS_BARRIERS
        arrive_with_copies(full + stage * 8);
#endif
#endif
    }

    // Returns the address of tile number n when it is there.
    __device__ __forceinline__ unsigned wait(int n) const {
        const int stage = n % STAGES;
#if HAS_BARRIERS
        wait_for_phase(full + stage * 8, n / STAGES & 1);
#else
        __syncthreads();
        asm volatile("" ::: "memory");
#endif
        return tiles + stage * TILE_BYTES;
    }

    __device__ __forceinline__ void leave(int n) const {
#if HAS_BARRIERS
        forget(n);  // and after all reads of the tile
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(empty + n % STAGES * 8);
#else
        asm volatile("" ::: "memory");  // after all reads of the tile
        if (STAGES == 2) __syncthreads();  // with more, that of the next tile comes early enough
#endif
    }
};
