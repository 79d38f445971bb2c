// An OpenMP runtime for programs under ThreadSanitizer: what gcc calls for the constructs that kernels use.
//
// The system's runtime is not instrumented, so that the sanitizer would miss what orders threads and report races that
// are none. Here every ordering is a thread's start, its end, or a lock, all of which the sanitizer knows. A construct
// that is not defined here (tasks, sections, ordered loops) fails to link, and the kernel is then not checked for races.
//
// Work is dealt out by turns: of n threads, thread t takes the chunks t, t + n, t + 2n, … of a loop whatever its schedule
// (which OpenMP allows), and the constructs "single" alike. No counter is shared, whose lock would order the threads and
// hide races, and also on one processor all threads work.

#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <vector>

namespace {

using Body = void (*)(void*);
using Unsigned = unsigned long long;

class Team {
 public:
  explicit Team(unsigned threads) : size(threads) {}

  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned round = round_;
    if (++waiting_ == size) {
      waiting_ = 0;
      round_++;
      all_here_.notify_all();
    }
    while (round == round_) all_here_.wait(lock);
  }

  const unsigned size;
  void* copied = nullptr;

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  unsigned waiting_ = 0, round_ = 0;
};

// One thread's place in a loop: next is its next chunk. Signed loops are held modulo 2^64, like the unsigned.
struct Loop {
  Unsigned start, end, step, count, chunk, next;

  template <typename T> bool take(unsigned threads, T* first, T* last) {
    if (next * chunk >= count) return false;
    const Unsigned from = next * chunk, to = count - from > chunk ? from + chunk : count;
    *first = T(start + from * step);
    *last = to == count ? T(end) : T(start + to * step);
    next += threads;
    return true;
  }
};

Loop make_loop(bool any, bool up, Unsigned start, Unsigned end, Unsigned step, Unsigned chunk) {
  const Unsigned length = up ? end - start : start - end, stride = up ? step : -step;
  const Unsigned count = any ? (length - 1) / stride + 1 : 0;
  return {start, end, step, count, chunk < count ? chunk : count, 0};
}

Loop signed_loop(long start, long end, long step, long chunk) {
  const bool up = step > 0;
  return make_loop(up ? start < end : start > end, up, Unsigned(start), Unsigned(end), Unsigned(step), Unsigned(chunk));
}

Loop unsigned_loop(bool up, Unsigned start, Unsigned end, Unsigned step, Unsigned chunk) {
  return make_loop(up ? start < end : start > end, up, start, end, step, chunk);
}

struct Thread {
  Team* team;
  unsigned number;
  Loop loop;
  unsigned singles;

  unsigned threads() const { return team ? team->size : 1; }
  void wait() const {
    if (team) team->wait();
  }
};

thread_local Thread self{};

// A region inside another runs on the thread that meets it, as by default.
void run_team(Body body, void* data, unsigned asked, const Loop& loop) {
  const Thread outer = self;
  Team team(outer.threads() > 1 ? 1 : asked ? asked : KEVOLVE_THREADS);
  if (team.size > 1) {
    // Where it is not said, nothing was checked: a kernel may find its work too little for several threads.
    static const int said = std::fputs("openmp: several threads\n", stderr);
    (void)said;
  }
  const auto work = [&](unsigned number) {
    self = {&team, number, loop, 0};
    self.loop.next = number;
    body(data);
  };
  std::vector<std::thread> others;
  for (unsigned number = 1; number < team.size; number++) others.emplace_back(work, number);
  work(0);
  for (std::thread& other : others) other.join();
  self = outer;
}

template <typename T> bool start_loop(const Loop& loop, T* first, T* last) {
  self.loop = loop;
  self.loop.next = self.number;
  return self.loop.take(self.threads(), first, last);
}

// Critical sections exclude each other, and so do the atomic updates that no instruction can make.
std::mutex critical, atomic;

}  // namespace

extern "C" {

int omp_get_thread_num(void) { return int(self.number); }
int omp_get_num_threads(void) { return int(self.threads()); }
int omp_get_max_threads(void) { return KEVOLVE_THREADS; }

void GOMP_parallel(Body body, void* data, unsigned threads, unsigned) { run_team(body, data, threads, {}); }
void GOMP_barrier(void) { self.wait(); }
void GOMP_critical_start(void) { critical.lock(); }
void GOMP_critical_end(void) { critical.unlock(); }
void GOMP_atomic_start(void) { atomic.lock(); }
void GOMP_atomic_end(void) { atomic.unlock(); }

bool GOMP_single_start(void) { return self.singles++ % self.threads() == self.number; }

void* GOMP_single_copy_start(void) {
  if (GOMP_single_start()) return nullptr;
  self.wait();
  return self.team->copied;
}

void GOMP_single_copy_end(void* data) {
  if (self.team) self.team->copied = data;
  self.wait();
}

void GOMP_loop_end(void) { self.wait(); }
void GOMP_loop_end_nowait(void) {}

#define NEXT(schedule)                                                                                        \
  bool GOMP_loop_##schedule##_next(long* first, long* last) {                                                 \
    return self.loop.take(self.threads(), first, last);                                                       \
  }                                                                                                           \
  bool GOMP_loop_ull_##schedule##_next(Unsigned* first, Unsigned* last) {                                     \
    return self.loop.take(self.threads(), first, last);                                                       \
  }

#define CHUNKED(schedule)                                                                                     \
  NEXT(schedule)                                                                                              \
  bool GOMP_loop_##schedule##_start(long start, long end, long step, long chunk, long* first, long* last) {   \
    return start_loop(signed_loop(start, end, step, chunk), first, last);                                     \
  }                                                                                                           \
  bool GOMP_loop_ull_##schedule##_start(bool up, Unsigned start, Unsigned end, Unsigned step, Unsigned chunk, \
                                        Unsigned* first, Unsigned* last) {                                    \
    return start_loop(unsigned_loop(up, start, end, step, chunk), first, last);                               \
  }                                                                                                           \
  void GOMP_parallel_loop_##schedule(Body body, void* data, unsigned threads, long start, long end,           \
                                     long step, long chunk, unsigned) {                                       \
    run_team(body, data, threads, signed_loop(start, end, step, chunk));                                      \
  }

#define CHOSEN_AT_RUN_TIME(schedule)                                                                          \
  NEXT(schedule)                                                                                              \
  bool GOMP_loop_##schedule##_start(long start, long end, long step, long* first, long* last) {               \
    return start_loop(signed_loop(start, end, step, 1), first, last);                                         \
  }                                                                                                           \
  bool GOMP_loop_ull_##schedule##_start(bool up, Unsigned start, Unsigned end, Unsigned step,                 \
                                        Unsigned* first, Unsigned* last) {                                    \
    return start_loop(unsigned_loop(up, start, end, step, 1), first, last);                                   \
  }                                                                                                           \
  void GOMP_parallel_loop_##schedule(Body body, void* data, unsigned threads, long start, long end,           \
                                     long step, unsigned) {                                                   \
    run_team(body, data, threads, signed_loop(start, end, step, 1));                                          \
  }

CHUNKED(dynamic)
CHUNKED(nonmonotonic_dynamic)
CHUNKED(guided)
CHUNKED(nonmonotonic_guided)
CHOSEN_AT_RUN_TIME(runtime)
CHOSEN_AT_RUN_TIME(nonmonotonic_runtime)
CHOSEN_AT_RUN_TIME(maybe_nonmonotonic_runtime)

}  // extern "C"
