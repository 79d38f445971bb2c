// What the generated program around a kernel is made of: memory of exactly the size that the kernel may touch, so that the
// sanitizers' red zones begin where it ends.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Of torch's allocator and of a kernel's workspaces.
constexpr size_t kvb_alignment = 64;
constexpr int kvb_failed = 88;

[[noreturn]] static void kvb_fail(const char* what) {
  std::fprintf(stderr, "harness: %s\n", what);
  std::exit(kvb_failed);
}

struct kvb_memory {
  unsigned char* at;
  int64_t size, shift = 0;
  bool has_gaps = false;
  unsigned char* first = nullptr;

  explicit kvb_memory(int64_t bytes) : size(bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, kvb_alignment, size_t(bytes)) != 0) kvb_fail("out of memory");
    at = static_cast<unsigned char*>(memory);
  }

  template <typename T> T* as() const { return reinterpret_cast<T*>(at + shift); }

  // What was in memory before the kernel ran: another byte on every turn.
  void fill(int64_t turn) { std::memset(at, turn % 2 ? 0x5A : 0xA5, size_t(size)); }
  void zero() { std::memset(at, 0, size_t(size)); }

  // Bytes that differ between two turns came from memory that nobody had written; gaps between elements stay filled.
  void compare(int64_t turn, const char* name) {
    if (turn == 0) {
      first = static_cast<unsigned char*>(std::malloc(size_t(size)));
      if (first == nullptr && size > 0) kvb_fail("out of memory");
      std::memcpy(first, at, size_t(size));
    }
    for (int64_t k = 0; k < size; k++) {
      if (first[k] == at[k] || (has_gaps && first[k] == 0xA5 && at[k] == 0x5A)) continue;
      std::fprintf(stderr, "memory: byte %lld of %s\n", static_cast<long long>(k), name);
      std::exit(kvb_failed);
    }
  }
};

struct kvb_arguments {
  char** next;

  int64_t number() { return std::atoll(*next++); }

  kvb_memory output() {
    kvb_memory memory(number());
    memory.has_gaps = number() != 0;
    return memory;
  }

  // A file of raw bytes, their count, and how many of them lie before the tensor's first element.
  kvb_memory contents() {
    const char* path = *next++;
    kvb_memory memory(number());
    memory.shift = number();
    std::FILE* file = std::fopen(path, "rb");
    if (!file || std::fread(memory.at, 1, size_t(memory.size), file) != size_t(memory.size)) kvb_fail("no input");
    std::fclose(file);
    return memory;
  }
};
