/* Calls the library `tiny` in ways it has to refuse, and in every way it has to serve; linked with its driver and
   kernels, under AddressSanitizer or not. Prints what is wrong; status 0 where nothing is. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tiny.h"

enum { THREADS = 8, CALLS = 400, GUARD = 64 };

static const float x[8] = {1, 2, 3, 4, 5, 6, 7, -8};
static const float wanted_a[8] = {1, 1, 8, 3, 19, 5, 34, 39};
static const int32_t wanted_b[2] = {82, 1};
static int failures;

#define CHECK(condition, ...) \
  do { \
    if (!(condition)) __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED), printf(__VA_ARGS__), printf("\n"); \
  } while (0)

/* Outputs and workspace of exactly the promised sizes, each a piece of its own, so that the sanitizer sees their ends. */
typedef struct {
  float *a;
  int32_t *b;
  unsigned char *workspace;
  tiny_call call;
} place;

static place furnished(void) {
  place p = {malloc(sizeof wanted_a), malloc(sizeof wanted_b), 0, {0}};
  void *made = 0;
  if (!p.a || !p.b || posix_memalign(&made, 64, TINY_WORKSPACE_MAX)) exit(2);
  p.workspace = made;
  memset(p.a, 0x55, sizeof wanted_a), memset(p.b, 0x55, sizeof wanted_b), memset(made, 0xFF, TINY_WORKSPACE_MAX);
  p.call = (tiny_call){.size = sizeof p.call, .workspace = made, .workspace_bytes = TINY_WORKSPACE_MAX, .level_used = 77};
  return p;
}

static void cleared(place *p) { free(p->a), free(p->b), free(p->workspace); }

static int untouched(const void *memory, size_t bytes, unsigned char fill) {
  const unsigned char *at = memory;
  for (size_t i = 0; i < bytes; i++)
    if (at[i] != fill) return 0;
  return 1;
}

static int right(const place *p, uint64_t tasks) {
  if ((tasks & TINY_A) ? memcmp(p->a, wanted_a, sizeof wanted_a) : !untouched(p->a, sizeof wanted_a, 0x55)) return 0;
  return (tasks & TINY_B) ? !memcmp(p->b, wanted_b, sizeof wanted_b) : untouched(p->b, sizeof wanted_b, 0x55);
}

/* A call that has to return `code` and to leave everything as it was. */
#define REFUSED(code, change, expression) \
  do { \
    place p = furnished(); \
    const void *in[] = {x}; \
    void *out[] = {p.a, p.b}; \
    uint64_t tasks = TINY_ALL; \
    tiny_call *call = &p.call; \
    const void *const *inputs = in; \
    void *const *outputs = out; \
    change; \
    (void)tasks, (void)inputs, (void)outputs, (void)call; \
    int found = (expression); \
    CHECK(found == (code), "line %d: code %d instead of %d", __LINE__, found, code); \
    CHECK(right(&p, 0) && untouched(p.workspace, TINY_WORKSPACE_MAX, 0xFF), "line %d: wrote", __LINE__); \
    CHECK(p.call.level_used == 77, "line %d: level_used", __LINE__); \
    cleared(&p); \
  } while (0)
#define RUN tiny_run(tasks, inputs, outputs, call)

static void refusals(void) {
  REFUSED(1, inputs = 0, RUN);
  REFUSED(1, outputs = 0, RUN);
  REFUSED(1, call = 0, RUN);
  REFUSED(1, in[0] = 0, RUN);
  REFUSED(1, out[0] = 0, RUN);
  REFUSED(1, out[1] = 0, RUN);
  REFUSED(1, in[0] = (const char *)x + 1, RUN);
  REFUSED(1, in[0] = (const char *)x + 2, RUN);
  REFUSED(1, out[0] = (char *)p.a + 1, RUN);
  REFUSED(1, out[1] = (char *)p.b + 3, RUN);
  REFUSED(1, call->workspace = 0, RUN);
  REFUSED(1, call->workspace = p.workspace + 4, RUN);
  REFUSED(1, call->workspace = p.workspace + 32, RUN);
  REFUSED(2, call->workspace_bytes = 0, RUN);
  REFUSED(2, call->workspace_bytes = tiny_workspace(TINY_ALL, 0) - 1, RUN);
  REFUSED(3, tasks = 0, RUN);
  REFUSED(3, tasks = 4, RUN);
  REFUSED(3, tasks = TINY_ALL | UINT64_C(1) << 63, RUN);
  REFUSED(4, call->level = 1, RUN);
  REFUSED(4, call->level = UINT32_MAX, RUN);
  REFUSED(6, call->size = 0, RUN);
  REFUSED(6, call->size = sizeof *call - 1, RUN);
  REFUSED(6, call->size = sizeof *call + 8, RUN);
  REFUSED(6, call->size = SIZE_MAX, RUN);
  REFUSED(1, (void)0, tiny_run_a(0, p.a, &p.call));
  REFUSED(1, (void)0, tiny_run_a(x, 0, &p.call));
  REFUSED(1, (void)0, tiny_run_a(x, p.a, 0));
  REFUSED(1, (void)0, tiny_run_a__b(x, p.a, (int32_t *)((char *)p.b + 1), &p.call));
  REFUSED(2, call->workspace_bytes = TINY_WORKSPACE_B - 1, tiny_run_b(x, p.b, &p.call));
}

static void queries(void) {
  CHECK(tiny_workspace(0, 0) == 0 && tiny_workspace(4, 0) == 0 && tiny_workspace(UINT64_MAX, 0) == 0, "subsets");
  CHECK(tiny_workspace(1, 1) == 0 && tiny_workspace(1, UINT32_MAX) == 0, "levels");
  CHECK(tiny_workspace(TINY_ALL, 0) <= TINY_WORKSPACE_MAX, "largest workspace");
  const int codes[] = {-1, 13, 1 << 30, -(1 << 30)};
  for (unsigned i = 0; i < sizeof codes / sizeof *codes; i++)
    CHECK(!strcmp(tiny_strerror(codes[i]), "unknown code"), "code %d", codes[i]);
  for (int i = 0; i < 13; i++) CHECK(strcmp(tiny_strerror(i), "unknown code"), "code %d", i);
}

static void pools(void) {
  const unsigned wrong[] = {0, TINY_THREADS_MAX + 1, 1000, (unsigned)-1};
  CHECK(tiny_pool_create(0, 2) == 1, "pool without a place");
  for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++) {
    tiny_pool *pool = (tiny_pool *)&failures;
    CHECK(tiny_pool_create(&pool, wrong[i]) == 9 && !pool, "pool of %u threads", wrong[i]);
  }
  tiny_pool_destroy(0);
  for (int i = 0; i < 2; i++) {  /* made and given back twice */
    tiny_pool *pool = 0;
    CHECK(tiny_pool_create(&pool, 2) == 0 && pool, "pool");
    tiny_pool_destroy(pool);
  }
}

/* Its own workspace and outputs, the same input, and the pool of all: the call is served, or refused with 8. */
static void *calls(void *pool) {
  place p = furnished();
  const void *in[] = {x};
  void *out[] = {p.a, p.b};
  p.call.pool = pool;
  for (int i = 0; i < CALLS; i++) {
    memset(p.a, 0x55, sizeof wanted_a), memset(p.b, 0x55, sizeof wanted_b);
    uint64_t tasks = 1 + i % 3;
    int code = tiny_run(tasks, in, out, &p.call);
    CHECK(code == 0 || (pool && code == 8), "code %d", code);
    CHECK(right(&p, code ? 0 : tasks), "outputs of call %d", i);
  }
  cleared(&p);
  return 0;
}

static void together(void *pool) {
  pthread_t threads[THREADS];
  for (int i = 0; i < THREADS; i++)
    if (pthread_create(&threads[i], 0, calls, pool)) exit(2);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], 0);
}

/* Without a pool a child of fork() may call; it has no threads to lose. */
static void forked(void) {
  int status = -1;
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) calls(0), fflush(stdout), _exit(failures != 0);
  CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0, "child of fork: status %d", status);
}

int main(void) {
  tiny_pool *pool = 0;
  refusals(), queries(), pools(), together(0), forked();
  CHECK(tiny_pool_create(&pool, 3) == 0, "pool of three");
  together(pool);
  tiny_pool_destroy(pool);
  printf("%d failures\n", failures);
  return failures != 0;
}
