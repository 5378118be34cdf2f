// The little of the C++ library that the runtime needs beyond its headers. The library itself is not
// linked: zig would have to compile it first, which takes minutes.
#include <cstddef>
#include <cstdlib>
#include <new>

void* operator new(std::size_t bytes) {
    void* memory = std::malloc(bytes);
    if (!memory) std::abort();
    return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace std {
inline namespace __1 {
[[noreturn]] void __libcpp_verbose_abort(const char*, ...) noexcept { std::abort(); }
}  // namespace __1
}  // namespace std
