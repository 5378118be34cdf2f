// Asynchronous copies to shared memory and the barriers on which they arrive; plain copies stand
// for them before sm_80.

__device__ __forceinline__ void copy_16_bytes(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#else
    *static_cast<float4*>(shared) = *static_cast<const float4*>(global);
#endif
}

// Copies `bytes`, of which the source has `source_bytes`; the rest becomes zero.
__device__ __forceinline__ void copy_4_bytes_or_zero(void* shared, const void* global,
                                                     int source_bytes) {
#if __CUDA_ARCH__ >= 800
    const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" : : "r"(target), "l"(global),
                 "r"(source_bytes) : "memory");
#else
    *static_cast<float*>(shared) = source_bytes ? *static_cast<const float*>(global) : 0.0f;
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;");
#endif
}

// Waits for all but the last GROUPS committed groups of this thread.
template <int GROUPS>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

#if __CUDA_ARCH__ >= 800
// Barriers in shared memory: an 8-byte object each.
__device__ __forceinline__ unsigned address_of(const unsigned long long* barrier) {
    return static_cast<unsigned>(__cvta_generic_to_shared(barrier));
}

__device__ __forceinline__ void start(unsigned long long* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address_of(barrier)), "r"(arrivals));
}

__device__ __forceinline__ void arrive(unsigned long long* barrier) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(
        address_of(barrier)));
}

__device__ __forceinline__ void arrive_with_copies(unsigned long long* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address_of(barrier)));
}

__device__ __forceinline__ void wait_for_phase(unsigned long long* barrier, unsigned parity) {
    unsigned ended;
    do {
        asm volatile(
            "{ .reg .pred ended; mbarrier.test_wait.parity.shared.b64 ended, [%1], %2; "
            "selp.u32 %0, 1, 0, ended; }"
            : "=r"(ended)
            : "r"(address_of(barrier)), "r"(parity)
            : "memory");
    } while (!ended);
}
#endif

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void arrive_expecting(unsigned long long* barrier, int bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                     address_of(barrier)),
                 "r"(bytes));
}

__device__ __forceinline__ void copy_bulk(void* shared, const void* global, int bytes,
                                          unsigned long long* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
        "[%0], [%1], %2, [%3];" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
        "l"(global), "r"(bytes), "r"(address_of(barrier))
        : "memory");
}
#endif
