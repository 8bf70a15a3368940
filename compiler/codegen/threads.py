"""The thread pool of a library, as C: part of the driver, one per library, no globals.

Every thread of a call walks the same list of kernels. A divided kernel is done by all threads, each a fixed range
of its units, so results do not depend on their number; any other kernel is done by the calling thread. A thread
waits only where it needs what others wrote: docs/decisions/0009.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.codegen.interface import Interface

_INCLUDES = ("#include <pthread.h>", "#include <sched.h>", "#include <signal.h>", "#include <stdlib.h>")
_IMPORTS = frozenset(
    """
    free malloc pthread_cond_broadcast pthread_cond_destroy pthread_cond_init pthread_cond_wait pthread_create
    pthread_join pthread_mutex_destroy pthread_mutex_init pthread_mutex_lock pthread_mutex_unlock pthread_sigmask
    sched_yield sigfillset
    """.split()
)


def feature_macros(face: Interface) -> tuple[str, ...]:
    """What must stand before the first include."""
    return ("#define _POSIX_C_SOURCE 200809L",) if face.shares else ()


def includes(face: Interface) -> tuple[str, ...]:
    """Headers the pool needs."""
    return _INCLUDES if face.shares else ()


def imports(face: Interface) -> frozenset[str]:
    """Functions the pool asks of libc, and of libpthread where that is a library of its own."""
    return _IMPORTS if face.shares else frozenset()


def libraries(face: Interface) -> tuple[str, ...]:
    """Linker arguments the pool needs."""
    return ("-lpthread",) if face.shares else ()


def step_macros(face: Interface) -> str:
    """C of RUN and SHARE, which the lists of kernels are written in, and of SCRATCH."""
    return _TEAM_STEPS if face.shares else _PLAIN_STEPS


def pool_text(face: Interface) -> Iterator[str]:
    """C of the pool and of what its threads do in a call; nothing for a library without pools."""
    if face.threads:
        text = (_POOL if face.shares else _EMPTY_POOL).replace("@name@", face.name).replace("@NAME@", face.upper)
        yield text.replace("@scratch@", str(face.scratch_bytes))


_PLAIN_STEPS = """#define SCRATCH(offset) WS(offset)
#define RUN(call) do { if (FAILS(call)) return 7; } while (0)
#define SHARE(units, call) do { const range part = {0, units}; RUN(call); } while (0)
typedef struct { int32_t begin, end; } range;
typedef void member;  /* there are no threads */"""

_TEAM_STEPS = """/* Steps are listed once and compiled twice: without a pool `me` is 0 and its branches are gone. */
#define SCRATCH(offset) ((void *)(me && me->scratch ? me->scratch : ws + (offset)))
#define RUN(call) do { \\
    if (!me) { if (FAILS(call)) return 7; } \\
    else if (alone(me)) me->failed |= FAILS(call); \\
  } while (0)
#define SHARE(units, call) do { \\
    const range part = me ? share(me, units) : (range){0, units}; \\
    if (!me) { if (FAILS(call)) return 7; } \\
    else if (part.begin < part.end) me->failed |= FAILS(call); \\
  } while (0)
typedef struct { int32_t begin, end; } range;"""

_EMPTY_POOL = """/* No kernel of this library does enough work to share: pools have no threads. */
struct @name@_pool { unsigned threads; };

int @name@_pool_create(@name@_pool **out, unsigned threads) {
  static const struct @name@_pool empty = {1};
  if (!out) return 1;
  *out = threads == 0 || threads > @NAME@_THREADS_MAX ? 0 : (@name@_pool *)&empty;
  return *out ? 0 : 9;
}

void @name@_pool_destroy(@name@_pool *pool) { (void)pool; }
"""

_POOL = """/* Threads. All members of a pool walk the same steps; member 0 is the calling thread. */
enum {
  LINE = 128,     /* bytes that two cores should not both write */
  SPINS = 2000,   /* looks at a counter before the processor is offered to others, */
  YIELDS = 200    /* and before the thread goes to sleep */
};

#if defined(__x86_64__) || defined(__i386__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

typedef struct member member;
typedef int program(ARGUMENTS, member *me, watch *clock);

struct member {
  _Alignas(LINE) _Atomic uint32_t progress;  /* steps whose results the others may use; never reset */
  _Alignas(LINE) @name@_pool *pool;          /* from here on the member's own */
  unsigned char *scratch;                    /* 0: no shared kernel has any */
  unsigned index;
  uint32_t step;                             /* of the walk: equal in all members between two calls */
  int shared, failed;                        /* whether the last step was shared out; any kernel failed */
  pthread_t thread;
};

struct @name@_pool {
  _Alignas(LINE) _Atomic uint32_t launched;  /* calls so far; what follows is the present one */
  int stopping;
  program *run;
  uint64_t tasks;
  const void *const *in;
  void *const *out;
  unsigned char *ws;
  uint32_t level;
  watch *clock;                              /* of a call with a budget */
  _Alignas(LINE) _Atomic int busy;
  _Alignas(LINE) _Atomic unsigned sleepers;
  unsigned threads;
  uint64_t share;                            /* 2^32 / threads, rounded up */
  void *memory;
  pthread_mutex_t mutex;
  pthread_cond_t wake;
  member members[];
};

static int reached(_Atomic uint32_t *counter, uint32_t wanted) {
  return (int32_t)(atomic_load_explicit(counter, memory_order_acquire) - wanted) >= 0;
}

/* Wait until `counter` is at `wanted`: a short while awake, then asleep. */
static void await(@name@_pool *pool, _Atomic uint32_t *counter, uint32_t wanted) {
  for (int i = 0; i < SPINS; i++) {
    if (reached(counter, wanted)) return;
    PAUSE();
  }
  for (int i = 0; i < YIELDS; i++) {
    if (reached(counter, wanted)) return;
    sched_yield();
  }
  pthread_mutex_lock(&pool->mutex);
  atomic_fetch_add(&pool->sleepers, 1);
  while ((int32_t)(atomic_load(counter) - wanted) < 0) pthread_cond_wait(&pool->wake, &pool->mutex);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->mutex);
}

/* Both this store and the look at `sleepers` are in the one total order of sequentially consistent operations, as
   are a sleeper's entry and its last look at the counter: one of the two sees the other. */
static void publish(@name@_pool *pool, _Atomic uint32_t *counter, uint32_t value) {
  atomic_store(counter, value);
  if (atomic_load(&pool->sleepers) == 0) return;
  pthread_mutex_lock(&pool->mutex);
  pthread_cond_broadcast(&pool->wake);
  pthread_mutex_unlock(&pool->mutex);
}

static void await_others(member *me) {
  @name@_pool *pool = me->pool;
  for (unsigned i = 0; i < pool->threads; i++)
    if (i != me->index) await(pool, &pool->members[i].progress, me->step);
}

/* The first unit of the part of member `index`; parts of up to 2^24 units differ in size by one at most. */
static int32_t part_begin(const member *me, unsigned index, int32_t units) {
  uint64_t begin = (uint64_t)units * (index * me->pool->share) >> 32;
  return begin < (uint64_t)units ? (int32_t)begin : units;
}

/* Enter a step that all members do: this member's part of `units`. */
static __attribute__((noinline)) range share(member *me, int32_t units) {
  @name@_pool *pool = me->pool;
  publish(pool, &me->progress, me->step);
  if (me->shared) await_others(me);
  else if (me->index) await(pool, &pool->members[0].progress, me->step);
  me->step++;
  me->shared = 1;
  return (range){part_begin(me, me->index, units), part_begin(me, me->index + 1, units)};
}

/* Enter a step that the calling thread does; whether this member is it. The others walk on. */
static __attribute__((noinline)) int alone(member *me) {
  if (me->shared) {
    publish(me->pool, &me->progress, me->step);
    if (me->index == 0) await_others(me);
  }
  me->step++;
  me->shared = 0;
  return me->index == 0;
}

/* No step of this call has the number of one before it, so that all wait for the calling thread at the first one
   too: it alone looks at the clock. */
static void walk(member *me) {
  @name@_pool *pool = me->pool;
  me->failed = me->shared = 0;
  me->step++;
  pool->run(pool->tasks, pool->in, pool->out, pool->ws, pool->level, me, pool->clock);
  publish(pool, &me->progress, ++me->step);
}

static void *work(void *argument) {
  member *me = argument;
  for (uint32_t call = 1;; call++) {
    await(me->pool, &me->pool->launched, call);
    if (me->pool->stopping) return 0;
    walk(me);
  }
}

static __attribute__((noinline)) int with_pool(@name@_pool *pool, program *run, ARGUMENTS, watch *clock) {
  if (atomic_exchange_explicit(&pool->busy, 1, memory_order_acquire)) return 8;
  pool->run = run, pool->tasks = tasks, pool->in = in, pool->out = out, pool->ws = ws, pool->level = level;
  pool->clock = clock;
  publish(pool, &pool->launched, atomic_load_explicit(&pool->launched, memory_order_relaxed) + 1);
  walk(&pool->members[0]);
  await_others(&pool->members[0]);
  int failed = 0;
  for (unsigned i = 0; i < pool->threads; i++) failed |= pool->members[i].failed;
  atomic_store_explicit(&pool->busy, 0, memory_order_release);
  return failed ? 7 : 0;
}

/* Stop the first `threads` members and give everything back. */
static void dismiss(@name@_pool *pool, unsigned threads) {
  pool->stopping = 1;
  publish(pool, &pool->launched, atomic_load_explicit(&pool->launched, memory_order_relaxed) + 1);
  for (unsigned i = 1; i < threads; i++) pthread_join(pool->members[i].thread, 0);
  pthread_cond_destroy(&pool->wake);
  pthread_mutex_destroy(&pool->mutex);
  free(pool->memory);
}

/* Start the threads; they take no signals, which are the application's business. Returns how many members run. */
static unsigned hire(@name@_pool *pool) {
  sigset_t all, before;
  unsigned i = 1;
  sigfillset(&all);
  if (pthread_sigmask(SIG_SETMASK, &all, &before)) return 1;
  while (i < pool->threads && !pthread_create(&pool->members[i].thread, 0, work, &pool->members[i])) i++;
  pthread_sigmask(SIG_SETMASK, &before, 0);
  return i;
}

/* 2^32 / divisor, rounded up. Processors without division would need a helper that raises signals. */
static uint64_t inverse(unsigned divisor) {
  uint64_t rest = UINT64_C(1) << 32, found = 0;
  for (int bit = 32; bit >= 0; bit--)
    if (rest >= (uint64_t)divisor << bit) rest -= (uint64_t)divisor << bit, found |= UINT64_C(1) << bit;
  return found + (rest > 0);
}

/* A pool of `threads` members without threads yet: one piece of memory, scratch of the members behind them. The
   calling thread has some too: in the workspace it would write lines that the others have read, which is slow. */
static @name@_pool *furnish(unsigned threads) {
  const size_t head = sizeof(@name@_pool) + threads * sizeof(member);
  const size_t scratch = (@scratch@u + LINE - 1) / LINE * LINE;
  const uint64_t bytes = (uint64_t)head + LINE + (uint64_t)threads * scratch;
  unsigned char *memory = (size_t)bytes == bytes ? malloc((size_t)bytes) : 0;
  if (!memory) return 0;
  unsigned char *start = memory + (LINE - (uintptr_t)memory % LINE) % LINE;
  @name@_pool *pool = (@name@_pool *)start;
  atomic_init(&pool->launched, 0), atomic_init(&pool->busy, 0), atomic_init(&pool->sleepers, 0);
  pool->stopping = 0, pool->threads = threads, pool->share = inverse(threads), pool->memory = memory;
  for (unsigned i = 0; i < threads; i++) {
    member *m = &pool->members[i];
    atomic_init(&m->progress, 0);
    m->pool = pool, m->index = i, m->step = 0;
    m->scratch = scratch ? start + head + i * scratch : 0;
  }
  return pool;
}

int @name@_pool_create(@name@_pool **out, unsigned threads) {
  if (!out) return 1;
  *out = 0;
  if (threads == 0 || threads > @NAME@_THREADS_MAX) return 9;
  @name@_pool *pool = furnish(threads);
  if (!pool) return 9;
  if (pthread_mutex_init(&pool->mutex, 0)) { free(pool->memory); return 9; }
  if (pthread_cond_init(&pool->wake, 0)) { pthread_mutex_destroy(&pool->mutex), free(pool->memory); return 9; }
  unsigned running = hire(pool);
  if (running < threads) { dismiss(pool, running); return 9; }
  *out = pool;
  return 0;
}

void @name@_pool_destroy(@name@_pool *pool) {
  if (pool) dismiss(pool, pool->threads);
}
"""
