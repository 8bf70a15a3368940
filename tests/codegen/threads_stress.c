/* Drives the thread pool of the library `team` hard; linked with its driver and kernels, under ThreadSanitizer or not.
   Prints what is wrong; status 0 where nothing is. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "team.h"

enum { N = 4096, CALLS = 60 };

static float x[N], wanted[2][N];
static int failures;

#define CHECK(condition, ...) \
  do { \
    if (!(condition)) __atomic_fetch_add(&failures, 1, __ATOMIC_RELAXED), printf(__VA_ARGS__), printf("\n"); \
  } while (0)

typedef struct {
  _Alignas(64) unsigned char workspace[TEAM_WORKSPACE_MAX];
  float out[2][N];
} place;

static place *new_place(void) {
  void *made = 0;
  if (posix_memalign(&made, 64, sizeof(place))) exit(2);
  return made;
}

/* One call of a subset on poisoned memory; returns its code. Outputs are checked where it is 0. */
static int call(team_pool *pool, uint64_t tasks, place *p) {
  memset(p, 0xFF, sizeof *p);
  team_call c = {.size = sizeof c, .workspace = p->workspace, .workspace_bytes = sizeof p->workspace, .pool = pool};
  const void *in[] = {x};
  void *out[] = {p->out[0], p->out[1]};
  int code = team_run(tasks, in, out, &c);
  for (int i = 0; i < 2 && code == 0; i++)
    if (tasks >> i & 1) CHECK(!memcmp(p->out[i], wanted[i], sizeof wanted[i]), "task %d of %d differs", i, (int)tasks);
  return code;
}

static void pause_for(long nanoseconds) {
  struct timespec t = {0, nanoseconds};
  nanosleep(&t, 0);
}

/* Subsets in turns; every few calls a rest in which the pool's threads fall asleep. */
static void *calls(void *argument) {
  team_pool *pool = argument;
  place *p = new_place();
  for (int i = 0; i < CALLS; i++) {
    int code = call(pool, 1 + i % 3, p);
    CHECK(code == 0, "code %d", code);
    if (i % 16 == 7) pause_for(20 * 1000 * 1000);
  }
  free(p);
  return 0;
}

static void every_size(void) {
  for (unsigned threads = 1; threads <= 5; threads++) {
    team_pool *pool = 0;
    CHECK(team_pool_create(&pool, threads) == 0, "no pool of %u", threads);
    calls(pool);
    team_pool_destroy(pool);
  }
}

/* Pools that serve no call or one, also while another pool works. */
static void short_lives(void) {
  team_pool *long_lived = 0, *pool = 0;
  place *p = new_place();
  CHECK(team_pool_create(&long_lived, 2) == 0, "no pool");
  for (int i = 0; i < 30; i++) {
    CHECK(team_pool_create(&pool, 1 + i % 4) == 0, "no pool");
    if (i % 2) CHECK(call(pool, 3, p) == 0, "call failed");
    CHECK(call(long_lived, 3, p) == 0, "call failed");
    team_pool_destroy(pool);
  }
  team_pool_destroy(long_lived);
  free(p);
}

static void two_at_once(void) {
  pthread_t other;
  team_pool *pools[2] = {0, 0};
  for (int i = 0; i < 2; i++) CHECK(team_pool_create(&pools[i], 2) == 0, "no pool");
  pthread_create(&other, 0, calls, pools[1]);
  calls(pools[0]);
  pthread_join(other, 0);
  for (int i = 0; i < 2; i++) team_pool_destroy(pools[i]);
}

/* One pool from two threads: a call is done or refused with 8, never wrong. */
static int refused;

static void *greedy(void *argument) {
  place *p = new_place();
  for (int i = 0; i < CALLS; i++) {
    int code = call(argument, 3, p);
    CHECK(code == 0 || code == 8, "code %d", code);
    if (code == 8) __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
  }
  free(p);
  return 0;
}

static void one_for_two(void) {
  pthread_t other;
  team_pool *pool = 0;
  CHECK(team_pool_create(&pool, 2) == 0, "no pool");
  pthread_create(&other, 0, greedy, pool);
  greedy(pool);
  pthread_join(other, 0);
  team_pool_destroy(pool);
}

/* Signals of the process reach the threads of the application, never those of a pool. */
static pthread_t chosen;
static volatile sig_atomic_t misled, delivered;

static void on_signal(int number) {
  (void)number;
  delivered++;
  if (!pthread_equal(pthread_self(), chosen)) misled++;
}

static void signals(void) {
  team_pool *pool = 0;
  place *p = new_place();
  chosen = pthread_self();
  struct sigaction action = {.sa_handler = on_signal};
  sigaction(SIGUSR1, &action, 0);
  CHECK(team_pool_create(&pool, 4) == 0, "no pool");
  for (int i = 0; i < 20; i++) {
    kill(getpid(), SIGUSR1);
    CHECK(call(pool, 3, p) == 0, "call failed");
  }
  team_pool_destroy(pool);
  CHECK(delivered > 0 && misled == 0, "%d signals, %d of them to a pool", (int)delivered, (int)misled);
  free(p);
}

int main(void) {
  place *p = new_place();
  srand(1);
  for (int i = 0; i < N; i++) x[i] = (float)(rand() % 19 - 9);
  team_call c = {.size = sizeof c, .workspace = p->workspace, .workspace_bytes = sizeof p->workspace};
  if (team_run_a__b(x, wanted[0], wanted[1], &c)) return 2;
  every_size();
  short_lives();
  two_at_once();
  one_for_two();
  signals();
  free(p);
  printf("%d failures, %d calls refused\n", failures, refused);
  return failures != 0;
}
