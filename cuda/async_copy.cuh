// Copies from global to shared memory that arrive later; before sm_80 plain copies in their place.

__device__ __forceinline__ void copy_16_bytes(float4* shared, const float4* global) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     static_cast<unsigned>(__cvta_generic_to_shared(shared))),
                 "l"(global)
                 : "memory");
#else
    *shared = *global;
#endif
}

// Waits for all copies of this thread; a barrier then makes them visible to the block.
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
