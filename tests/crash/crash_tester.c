/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The crash tester: runs workloads on images of the simulated disk, rebuilds what a power cut could
 * have left of them at every moment, and judges it.
 *
 *     crash_tester --states 100000      so many states, over all images
 *     crash_tester --long               $CRASH_STATES of them (1000000), and more of each workload
 *     crash_tester --states 0           every series of up to three operations on every image
 *     crash_tester --image c4k-plain-r16 --workload write-4k,flush --seed 1 --state 17
 *
 * Everything follows from the seed; the last line of a run tells how to have it again.  Only images
 * with compressed clusters, which worker threads decode, may run differently when operations run at
 * the same time.
 */
#include "base/checked.h"
#include "tests/crash/judge.h"
#include "tests/crash/qemu_check.h"
#include "tests/crash/workload.h"
#include "tests/support/sim_disk.h"
#include "tests/support/sim_engine.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FAILURES_MAX 5

struct settings {
    const char *format, *image, *workload;
    const char *save; /* a directory for what is judged, or NULL */
    uint64_t seed;
    uint64_t states;  /* of all images together; 0: all that there are */
    uint64_t each;    /* of one workload at most; 0: all */
    uint64_t random;  /* random workloads of each image, when states is 0 */
    uint64_t only;    /* the state of that number; 0: no choice */
    uint64_t subsets; /* as cut_job.subsets */
    uint64_t repair_every, qemu_every;
    bool list, thorough;
};

/* States that were judged already, by what the files hold and what is promised. */
struct known {
    uint64_t *slots;
    size_t room, count;
};

struct tester {
    struct settings settings;
    uint64_t workloads, failures;
    uint64_t states_left; /* of this image */
    uint64_t each;        /* settings.each; fewer where they are expensive */
    struct judge judge;
    char workload[WORKLOAD_NAME_MAX];
    struct known known;
    uint64_t total; /* states of this workload */
    struct prng choice;
};

static char rerun[512]; /* for the signal handler, too */

/* Whether the key is new; then it is kept. */
static bool known_add(struct known *known, uint64_t key)
{
    size_t i;

    if (2 * (known->count + 1) > known->room) {
        struct known larger = {.room = known->room ? 2 * known->room : 256};

        larger.slots = calloc(larger.room, sizeof(*larger.slots));
        if (!larger.slots)
            test_die("out of memory");
        for (i = 0; i < known->room; i++) {
            if (known->slots[i])
                known_add(&larger, known->slots[i]);
        }
        free(known->slots);
        *known = larger;
    }
    key += key == 0;
    for (i = key % known->room; known->slots[i]; i = (i + 1) % known->room) {
        if (known->slots[i] == key)
            return false;
    }
    known->slots[i] = key;
    known->count++;
    return true;
}

static void known_clear(struct known *known)
{
    free(known->slots);
    *known = (struct known){.room = 0};
}

static void set_rerun(const struct tester *t, uint64_t state)
{
    const struct settings *s = &t->settings;

    snprintf(rerun, sizeof(rerun),
             "crash_tester --image %s --workload %s --seed %lu --subsets %lu --repair-every 1 "
             "--qemu-every %u --state %lu\n",
             t->judge.row->name, t->workload, s->seed, s->subsets, s->qemu_every > 0, state);
}

/* A sanitizer or an assertion ends the program: the last line tells how to have that again. */
static void on_abort(int signal)
{
    ssize_t n = write(STDERR_FILENO, rerun, strlen(rerun));

    (void)n;
}

static bool wants_none(void *arg, uint64_t number)
{
    return false;
}

static bool wants(void *arg, uint64_t number)
{
    struct tester *t = arg;
    const struct settings *s = &t->settings;

    if (s->only)
        return number == s->only;
    return t->each == 0 || prng_below(&t->choice, t->total) < t->each;
}

static bool visit(void *arg, const struct cut_state *state)
{
    struct tester *t = arg;
    struct judge *j = &t->judge;
    uint64_t key = history_promises(j->history, state->point);

    for (unsigned f = 0; image_file(j->row, f); f++)
        key = key * UINT64_C(0x9e3779b97f4a7c15) + content_hash(&state->files[f]);
    if (!known_add(&t->known, key))
        return true;
    set_rerun(t, state->number);
    if (t->settings.save)
        image_save(j->row, state->files, t->settings.save);
    if (!judge_state(j, state)) {
        t->failures++;
        printf("FAILED: %s, %s, state %lu: cut at record %zu, %zu changes not synced, %s: %s\n"
               "  rerun: %s",
               j->row->name, t->workload, state->number, state->point, state->unsynced, state->kind,
               j->text, rerun);
        fflush(stdout);
    }
    return t->failures < FAILURES_MAX && !t->settings.only;
}

static void cut_workload(struct tester *t, const struct content *before)
{
    const struct image_row *row = t->judge.row;
    struct cut_job job = {.before = before,
                          .numbers = {-1, -1},
                          .subsets = (unsigned)t->settings.subsets,
                          .seed = t->settings.seed,
                          .wants = wants_none,
                          .visit = visit,
                          .arg = t};
    struct record *records;
    uint64_t judged = t->judge.states;

    for (unsigned i = 0; image_file(row, i); i++)
        job.numbers[i] = recorder_file(image_file(row, i));
    records = recorder_take(&job.count);
    job.records = records;
    image_data_only(row, job.data_only);
    recorder_remove();
    t->total = cut_all(&job);
    t->choice = prng_of(t->settings.seed + t->total);
    job.wants = wants;
    cut_all(&job);
    known_clear(&t->known);
    records_free(records, job.count);
    judged = t->judge.states - judged;
    t->states_left -= min_u64(t->states_left, judged);
    t->workloads++;
}

/* Runs t->workload on a fresh image, and cuts it everywhere. */
static int run_workload(struct tester *t, const struct content *fresh, const uint8_t *model)
{
    const struct image_row *row = t->judge.row;
    uint64_t room = WORKLOAD_ROOM * row->bytes;
    uint8_t *now = calloc(1, room);
    struct history *history;
    struct error error = {.text = ""};
    int err;

    if (!now)
        test_die("out of memory");
    set_rerun(t, 0);
    memcpy(now, model, row->bytes);
    image_restore(row, fresh);
    sim_engine_seed(t->settings.seed);
    recorder_install();
    history = history_new(now, row->bytes, image_snapshot(row), image_bitmap(row));
    err = workload_run(row, t->workload, t->settings.seed, now, history, &error);
    t->judge.history = history;
    if (err == 0) {
        cut_workload(t, fresh);
    } else {
        recorder_remove();
        t->failures++;
        printf("FAILED: %s, %s: %s\n  rerun: %s", row->name, t->workload, error.text, rerun);
    }
    history_free(history);
    free(now);
    return err;
}

/* The workload number i of this image; false: there are no more. */
static bool choose_workload(struct tester *t, uint64_t i)
{
    const struct settings *s = &t->settings;
    const struct image_row *row = t->judge.row;
    uint64_t series = workload_count(row);

    if (s->workload) {
        snprintf(t->workload, sizeof(t->workload), "%s", s->workload);
        return i == 0;
    }
    if (s->states == 0) {
        if (i < series)
            workload_name(row, i, t->workload);
        else
            workload_random_name(i - series, t->workload);
        return i < series + s->random;
    }
    /* In turns one of each, as far as the states go. */
    if (i % 2 == 0)
        workload_name(row, prng_next(&(struct prng){s->seed + i + row->bytes}) % series,
                      t->workload);
    else
        workload_random_name(i, t->workload);
    return t->states_left > 0;
}

static void run_image(struct tester *t, const struct image_row *row)
{
    struct content fresh[CUT_FILES] = {{.data = NULL}};
    uint8_t *model = malloc(row->bytes);
    struct error error = {.text = ""};
    int err;

    if (!model)
        test_die("out of memory");
    t->judge.row = row;
    t->each = row->share < 0.1 ? div_round_up(t->settings.each, 8) : t->settings.each;
    err = image_make(row, model, &error);
    if (err < 0) {
        printf("%s: left out: %s\n", row->name, error.text);
        t->failures += err != -ENOTSUP;
    } else {
        image_copy(row, fresh);
        for (uint64_t i = 0; t->failures < FAILURES_MAX && choose_workload(t, i); i++)
            run_workload(t, fresh, model);
    }
    judge_fini(&t->judge);
    for (unsigned f = 0; f < CUT_FILES; f++)
        content_fini(&fresh[f]);
    free(model);
}

static bool row_wanted(const struct settings *s, const struct image_row *row)
{
    return (!s->image || strcmp(s->image, row->name) == 0) &&
           (!s->format || strcmp(s->format, row->format) == 0);
}

static int run_all(void *arg)
{
    struct tester *t = arg;
    struct image_row row;
    double shares = 0;

    for (size_t i = 0; image_row_get(i, &row); i++)
        shares += row_wanted(&t->settings, &row) ? row.share : 0;
    for (size_t i = 0; image_row_get(i, &row) && t->failures < FAILURES_MAX; i++) {
        if (!row_wanted(&t->settings, &row))
            continue;
        if (t->settings.list)
            printf("%s\n", row.name);
        t->states_left = 1 + (uint64_t)((double)t->settings.states * row.share / shares);
        if (t->settings.list)
            continue;
        sim_disk_install(&(struct sim_disk_config){.seed = t->settings.seed});
        run_image(t, &row);
        sim_disk_remove();
    }
    return shares > 0 ? 0 : -ENOENT;
}

static uint64_t number_of(const char *option, const char *text)
{
    char *end;
    uint64_t value = strtoull(text, &end, 0);

    if (!*text || *end || *text == '-') {
        fprintf(stderr, "crash_tester: --%s: '%s' is not a number\n", option, text);
        exit(2);
    }
    return value;
}

static void parse(int argc, char **argv, struct settings *s)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 0},
        {"image", required_argument, NULL, 0},
        {"workload", required_argument, NULL, 0},
        {"save", required_argument, NULL, 0},
        {"seed", required_argument, NULL, 0},
        {"states", required_argument, NULL, 0},
        {"each", required_argument, NULL, 0},
        {"random", required_argument, NULL, 0},
        {"state", required_argument, NULL, 0},
        {"subsets", required_argument, NULL, 0},
        {"repair-every", required_argument, NULL, 0},
        {"qemu-every", required_argument, NULL, 0},
        {"list", no_argument, NULL, 0},
        {"long", no_argument, NULL, 0},
        {0},
    };
    const char **texts[] = {&s->format, &s->image, &s->workload, &s->save};
    uint64_t *numbers[] = {&s->seed, &s->states,  &s->each,         &s->random,
                           &s->only, &s->subsets, &s->repair_every, &s->qemu_every};
    int index, got;

    while ((got = getopt_long(argc, argv, "", options, &index)) == 0) {
        if (index < 4)
            *texts[index] = optarg;
        else if (index < 12)
            *numbers[index - 4] = number_of(options[index].name, optarg);
        else if (index == 12)
            s->list = true;
        else
            s->thorough = true;
    }
    if (got == -1 && optind == argc && s->repair_every > 0)
        return;
    fprintf(stderr, "usage: crash_tester [--format F] [--image I] [--workload W] [--seed N] "
                    "[--states N] [--each N]\n"
                    "  [--random N] [--state N] [--save DIR] [--subsets N] [--repair-every N] "
                    "[--qemu-every N] [--long] [--list]\n");
    exit(2);
}

/* All that the run followed from, so that it can be had again. */
static void print_settings(const struct settings *s)
{
    const char *texts[] = {"format", s->format, "image", s->image, "workload", s->workload};

    printf("rerun: crash_tester");
    for (size_t i = 0; i < ARRAY_SIZE(texts); i += 2) {
        if (texts[i + 1])
            printf(" --%s %s", texts[i], texts[i + 1]);
    }
    printf(" --seed %lu --states %lu --each %lu --random %lu --state %lu --subsets %lu "
           "--repair-every %lu --qemu-every %lu\n",
           s->seed, s->states, s->each, s->random, s->only, s->subsets, s->repair_every,
           s->qemu_every);
}

static void print_result(const struct tester *t)
{
    const struct judge *j = &t->judge;

    printf("%lu workloads, %lu states rebuilt and checked, %lu more of cut recoveries, "
           "%lu second opinions, %lu bitmaps compared, %lu corrupt, %lu with flushed data lost, "
           "%lu failures\n",
           t->workloads, j->states, j->recoveries, j->second_opinions, j->bitmaps, j->corrupt,
           j->lost, t->failures);
    print_settings(&t->settings);
}

static void go_for_long(struct settings *s)
{
    const char *states = getenv("CRASH_STATES");

    s->states = number_of("long", states && *states ? states : "1000000");
    s->each = 400;
    s->subsets = 4096;
    s->repair_every = 2;
}

int main(int argc, char **argv)
{
    static struct tester t = {.settings = {.seed = 1,
                                           .states = 10000,
                                           .each = 40,
                                           .random = 100,
                                           .subsets = 256,
                                           .repair_every = 5,
                                           .qemu_every = 500}};
    int err;

    parse(argc, argv, &t.settings);
    if (t.settings.thorough)
        go_for_long(&t.settings);
    signal(SIGABRT, on_abort);
    if (t.settings.workload || t.settings.only)
        t.settings.each = 0;
    if (t.settings.qemu_every > 0 && !qemu_check_possible()) {
        printf("there is no qemu-img: no second opinions\n");
        t.settings.qemu_every = 0;
    }
    t.judge.repair_every = (unsigned)t.settings.repair_every;
    t.judge.qemu_every = (unsigned)t.settings.qemu_every;
    t.judge.recovery_subsets = 8;
    err = test_run(run_all, &t);
    if (err < 0)
        fprintf(stderr, "crash_tester: there is no such image; see --list\n");
    else if (!t.settings.list)
        print_result(&t);
    return err < 0 || t.failures > 0;
}
