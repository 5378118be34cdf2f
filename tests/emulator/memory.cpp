// Checks of every memory access of a kernel: bounds, write protection, races, unwritten shared
// memory, asynchronous copies under way.
//
// -fsanitize=thread puts a call to __tsan_read4 and the like before each access. The
// sanitizer's own library, which knows nothing of CUDA, is not linked: the functions at the end
// take its place.
#include <algorithm>
#include <cinttypes>
#include <cstring>

#include "internal.h"

// Bounds of this shared library, supplied by the linker.
extern "C" {
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
}

namespace emulator {

namespace {

// Far more than any kernel does between two barriers, and reached within seconds.
constexpr uint64_t MOST_ACCESSES_IN_A_ROW = uint64_t(1) << 26;

uintptr_t as_number(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Constants, and variables of the kernel's translation unit.
bool in_this_library(uintptr_t address) {
    return address >= as_number(__ehdr_start) && address < as_number(_end);
}

bool on_own_stack(uintptr_t address) {
    return address - as_number(running->stack) < STACK_BYTES;
}

const char* verb(Access access) {
    switch (access) {
        case Access::read: return "read";
        case Access::atomic: return "atomic update";
        case Access::copy_issued:
        case Access::copy_landed: return "asynchronous copy";
        default: return "write";
    }
}

Region* find_region(uintptr_t address) {
    static size_t last = 0;  // accesses come in runs to the same array
    std::vector<Region>& regions = launch->regions;
    if (last < regions.size() && address - regions[last].begin < regions[last].bytes) {
        return &regions[last];
    }
    for (size_t i = 0; i < regions.size(); ++i) {
        if (address - regions[i].begin < regions[i].bytes) {
            last = i;
            return &regions[i];
        }
    }
    return nullptr;
}

// How far an address lies outside a region; 0 for its inside and for its end.
uint64_t distance(const Region& region, uintptr_t address) {
    if (address < region.begin) return region.begin - address;
    const uintptr_t end = region.begin + region.bytes;
    return address <= end ? 0 : address - end;
}

[[noreturn]] void out_of_bounds(uintptr_t address, size_t bytes, Access access, uint32_t pc) {
    const Region* region = nearest_region(address);
    if (!region) {
        report(Fault::out_of_bounds, running->index, Location(pc), {},
               "%s of %zu bytes, and the kernel has no memory at all", verb(access), bytes);
    } else {
        report(Fault::out_of_bounds, running->index, Location(pc), {},
               "%s of %zu bytes at byte %+" PRId64 " of %s, which has %zu bytes", verb(access),
               bytes, static_cast<int64_t>(address - region->begin), region->name, region->bytes);
    }
    abandon_launch();
}

Event now(uint32_t pc) {
    return {running->clock, pc, static_cast<uint16_t>(running->index)};
}

void report_race(const char* what, const Region& region, uint32_t pc, const Event& other) {
    if (other.actor < launch->threads_per_block) {
        report(Fault::race, running->index, Location(pc), Location(other.pc),
               "%s, in %s; thread %u", what, region.name, other.actor);
    } else {
        report(Fault::race, running->index, Location(pc), Location(other.pc),
               "%s, in %s; an asynchronous copy whose mbarrier this thread has not waited at", what,
               region.name);
    }
}

void check_against_last_write(const Region& region, const Cell& cell, Access access, uint32_t pc) {
    const bool both_atomic = access == Access::atomic && cell.write_was_atomic;
    if (cell.write_epoch == 0 || both_atomic) return;
    const bool reads = access == Access::read;
    if (cell.write_epoch < launch->first_epoch) {
        if (region.shared) return;  // another block's shared memory is other memory
        report_race(reads ? "read of what another block has written"
                          : "write over what another block has written",
                    region, pc, cell.write);
    } else if (cell.write_epoch == launch->epoch && !is_ordered(cell.write)) {
        report_race(reads ? "read after write with no barrier between"
                          : "write after write with no barrier between",
                    region, pc, cell.write);
    }
}

// The first read of this epoch that nothing has ordered, or null.
const Event* unordered_read(const Cell& cell) {
    if (!is_ordered(cell.read)) return &cell.read;
    if (cell.more_reads) {
        for (const Event& read : launch->reads[cell.more_reads]) {
            if (!is_ordered(read)) return &read;
        }
    }
    return nullptr;
}

void check_against_reads(const Region& region, const Cell& cell, uint32_t pc) {
    if (cell.read_epoch == 0) return;
    const bool last_read_by_earlier_block = cell.read_epoch < launch->first_epoch;
    if (!region.shared && (last_read_by_earlier_block || cell.read_by_earlier_block)) {
        report_race("write over what another block has read", region, pc, cell.read);
    } else if (cell.read_epoch == launch->epoch) {
        const Event* read = unordered_read(cell);
        if (read) report_race("write after read with no barrier between", region, pc, *read);
    }
}

void remember_write(Cell& cell, Access access, uint32_t pc) {
    cell.write_epoch = launch->epoch;
    cell.write = now(pc);
    cell.write_was_atomic = access == Access::atomic;
}

// A read that happened after all those remembered takes their place: whatever comes after it comes
// after them.
void remember_read(const Region& region, Cell& cell, uint32_t pc) {
    if (!region.writable) return;
    if (cell.read_epoch != launch->epoch) {
        if (cell.read_epoch && cell.read_epoch < launch->first_epoch) {
            cell.read_by_earlier_block = true;
        }
        cell.read_epoch = launch->epoch;
        if (cell.more_reads) launch->reads[cell.more_reads].clear();
    } else if (!unordered_read(cell)) {
        if (cell.more_reads) launch->reads[cell.more_reads].clear();
    } else {
        if (!cell.more_reads) {
            cell.more_reads = static_cast<uint32_t>(launch->reads.size());
            launch->reads.emplace_back();
        }
        std::vector<Event>& reads = launch->reads[cell.more_reads];
        const auto own = std::find_if(reads.begin(), reads.end(), [](const Event& read) {
            return read.actor == running->index;
        });
        if (own == reads.end()) {
            reads.push_back(now(pc));
        } else {
            *own = now(pc);
        }
        return;
    }
    cell.read = now(pc);
}

void check_cell(const Region& region, Cell& cell, Access access, uint32_t pc) {
    const bool written_by_this_block = cell.write_epoch >= launch->first_epoch;
    if (access == Access::copy_landed) {
        cell.copy_pending = false;
    } else if (cell.copy_pending && written_by_this_block) {
        report(Fault::async_copy, running->index, Location(pc), Location(cell.write.pc),
               "%s of bytes of %s while an asynchronous copy to them has not been waited for; "
               "thread %u",
               verb(access), region.name, cell.write.actor);
        return;
    }
    const bool needs_a_value = access == Access::read || access == Access::atomic;
    if (region.shared && needs_a_value && !written_by_this_block) {
        report(Fault::unwritten_shared_read, running->index, Location(pc), {},
               "%s of bytes of %s that no thread of this block has written", verb(access),
               region.name);
    }
    check_against_last_write(region, cell, access, pc);
    if (access == Access::read) {
        remember_read(region, cell, pc);
        return;
    }
    check_against_reads(region, cell, pc);
    remember_write(cell, access, pc);
    cell.copy_pending = access == Access::copy_issued;
}

}  // namespace

bool is_ordered(const Event& event) {
    return event.actor == running->index || running->seen.clock[event.actor] > event.clock;
}

const Region* nearest_region(uintptr_t address) {
    const std::vector<Region>& regions = launch->regions;
    const auto nearer = [address](const Region& a, const Region& b) {
        return distance(a, address) < distance(b, address);
    };
    const auto nearest = std::min_element(regions.begin(), regions.end(), nearer);
    return nearest == regions.end() ? nullptr : &*nearest;
}

void Region::refine(size_t to) {
    const size_t old_count = cells ? (bytes + granule - 1) / granule : 0;
    const size_t parts = granule / to;
    const size_t new_count = (bytes + to - 1) / to;
    Cell* finer = static_cast<Cell*>(std::calloc(new_count + 1, sizeof(Cell)));
    if (!finer) std::abort();
    for (size_t i = 0; i < old_count; ++i) {
        if (cells[i].write_epoch == 0 && cells[i].read_epoch == 0) continue;
        for (size_t part = i * parts; part < std::min((i + 1) * parts, new_count); ++part) {
            finer[part] = cells[i];
            if (cells[i].more_reads) {
                finer[part].more_reads = static_cast<uint32_t>(launch->reads.size());
                launch->reads.push_back(std::vector<Event>(launch->reads[cells[i].more_reads]));
            }
        }
    }
    cells.reset(finer);
    granule = to;
}

void check_access(const void* pointer, size_t bytes, Access access, uint32_t pc) {
    if (!running || !launch->checked || bytes == 0) return;
    const uintptr_t address = as_number(pointer);
    if (on_own_stack(address)) return;
    if (++running->accesses_since_resumed > MOST_ACCESSES_IN_A_ROW) {
        report(Fault::endless_loop, running->index, Location(pc), {},
               "%" PRIu64 " memory accesses without reaching a barrier", MOST_ACCESSES_IN_A_ROW);
        abandon_launch();
    }
    Region* region = find_region(address);
    if (!region && in_this_library(address)) return;
    if (!region || address - region->begin + bytes > region->bytes) {
        out_of_bounds(address, bytes, access, pc);
    }
    const size_t offset = address - region->begin;
    if (access != Access::read && !region->writable) {
        report(Fault::write_to_read_only, running->index, Location(pc), {},
               "%s of %zu bytes at byte %zu of %s, which is read-only", verb(access), bytes, offset,
               region->name);
        abandon_launch();
    }
    const size_t both = offset | bytes;
    const size_t fitting_granule = both & (~both + 1);  // the largest power of two dividing both
    if (fitting_granule < region->granule || !region->cells) {
        region->refine(std::min(fitting_granule, region->granule));
    }
    const size_t end = (offset + bytes) / region->granule;
    for (size_t i = offset / region->granule; i < end; ++i) {
        check_cell(*region, region->cells[i], access, pc);
    }
}

void mark_as_landed(const Copy& copy, Event write) {
    if (!launch->checked) return;
    const uintptr_t address = as_number(copy.target);
    Region& region = *find_region(address);
    const size_t offset = address - region.begin;
    for (size_t at = 0; at < static_cast<size_t>(copy.bytes); at += region.granule) {
        Cell& cell = region.cells[(offset + at) / region.granule];
        cell.write_epoch = launch->epoch;
        cell.write = write;
        cell.write_was_atomic = false;
        cell.copy_pending = false;
    }
}

uint32_t relative_pc(const void* return_address) {
    return static_cast<uint32_t>(as_number(return_address) - 1 - as_number(__ehdr_start));
}

void before_atomic(void* address, size_t bytes, const void* caller) {
    check_access(address, bytes, Access::atomic, relative_pc(caller));
    if (as_number(address) % bytes != 0) {
        report(Fault::misaligned, running->index, Location(relative_pc(caller)), {},
               "atomic on %zu bytes at an address that is no multiple of that", bytes);
        abandon_launch();
    }
}

void before_cast(const volatile void* pointer, size_t alignment) {
    if (!launch->checked || reinterpret_cast<uintptr_t>(pointer) % alignment == 0) return;
    report(Fault::misaligned, running->index, Location(relative_pc(__builtin_return_address(0))),
           {}, "cast to a type whose alignment, %zu bytes, does not divide the address", alignment);
    abandon_launch();
}

unsigned shared_address(const void* pointer, const void* caller) {
    const uintptr_t address = as_number(pointer);
    if (launch->checked) {
        const Region* region = nearest_region(address);
        // One past the end is the address of an empty piece and harmless until used.
        if (!region || !region->shared || distance(*region, address) != 0) {
            report(Fault::out_of_bounds, running->index, Location(relative_pc(caller)), {},
                   "__cvta_generic_to_shared of an address that is not in shared memory");
            abandon_launch();
        }
    }
    return static_cast<unsigned>(address - as_number(shared_memory_window()));
}

// ---- asynchronous copies -----------------------------------------------------------------------

void copy_async(unsigned target_address, const void* source, int bytes, int source_bytes,
                const void* caller) {
    char* target = shared_memory_window() + target_address;
    const Copy copy{target, static_cast<const char*>(source), bytes, source_bytes,
                    relative_pc(caller)};
    if ((as_number(target) | as_number(source)) % static_cast<unsigned>(bytes) != 0) {
        report(Fault::misaligned, running->index, Location(copy.pc), {},
               "cp.async of %d bytes from or to an address that is no multiple of that", bytes);
        abandon_launch();
    }
    if (source_bytes < 0 || source_bytes > bytes) {
        report(Fault::async_copy, running->index, Location(copy.pc), {},
               "cp.async of %d bytes with a source of %d bytes", bytes, source_bytes);
        abandon_launch();
    }
    check_access(source, static_cast<size_t>(source_bytes), Access::read, copy.pc);
    check_access(target, static_cast<size_t>(bytes), Access::copy_issued, copy.pc);
    std::memset(target, 0xff, static_cast<size_t>(bytes));  // NaN in every floating-point format
    running->uncommitted_copies.push_back(copy);
}

void commit_copies() {
    running->copy_groups.push_back(std::move(running->uncommitted_copies));
    running->uncommitted_copies.clear();
}

void wait_for_copies(int groups_left_pending) {
    std::vector<std::vector<Copy>>& groups = running->copy_groups;
    while (groups.size() > static_cast<size_t>(groups_left_pending)) {
        for (const Copy& copy : groups.front()) {
            // For the race check the copy is a write of this thread at this moment: a barrier that
            // came before the wait does not make it visible to others.
            const size_t bytes = static_cast<size_t>(copy.bytes);
            check_access(copy.target, bytes, Access::copy_landed, copy.pc);
            std::memset(copy.target, 0, bytes);
            std::memcpy(copy.target, copy.source, static_cast<size_t>(copy.source_bytes));
        }
        groups.erase(groups.begin());
    }
}

}  // namespace emulator

// ---- the functions that -fsanitize=thread calls ------------------------------------------------

#define CALLER emulator::relative_pc(__builtin_return_address(0))

#define CHECKED_ACCESS(suffix, bytes)                                            \
    void __tsan_read##suffix(void* address) {                                    \
        emulator::check_access(address, bytes, emulator::Access::read, CALLER);  \
    }                                                                            \
    void __tsan_write##suffix(void* address) {                                   \
        emulator::check_access(address, bytes, emulator::Access::write, CALLER); \
    }                                                                            \
    void __tsan_unaligned_read##suffix(void* address) {                          \
        emulator::check_access(address, bytes, emulator::Access::read, CALLER);  \
    }                                                                            \
    void __tsan_unaligned_write##suffix(void* address) {                         \
        emulator::check_access(address, bytes, emulator::Access::write, CALLER); \
    }

extern "C" {
CHECKED_ACCESS(1, 1)
CHECKED_ACCESS(2, 2)
CHECKED_ACCESS(4, 4)
CHECKED_ACCESS(8, 8)
CHECKED_ACCESS(16, 16)

void __tsan_read_range(void* address, size_t bytes) {
    emulator::check_access(address, bytes, emulator::Access::read, CALLER);
}
void __tsan_write_range(void* address, size_t bytes) {
    emulator::check_access(address, bytes, emulator::Access::write, CALLER);
}
void* __tsan_memcpy(void* target, const void* source, size_t bytes) {
    emulator::check_access(source, bytes, emulator::Access::read, CALLER);
    emulator::check_access(target, bytes, emulator::Access::write, CALLER);
    return std::memcpy(target, source, bytes);
}
void* __tsan_memmove(void* target, const void* source, size_t bytes) {
    emulator::check_access(source, bytes, emulator::Access::read, CALLER);
    emulator::check_access(target, bytes, emulator::Access::write, CALLER);
    return std::memmove(target, source, bytes);
}
void* __tsan_memset(void* target, int value, size_t bytes) {
    emulator::check_access(target, bytes, emulator::Access::write, CALLER);
    return std::memset(target, value, bytes);
}
void __tsan_init() {}
}
