/* SPDX-License-Identifier: Apache-2.0 */
/* test_main.c - runs what TEST() and its like have registered, each in a child process; see test.h. */
#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { PATIENCE_S = 60 };

static const char *const RINGS[TEST_RINGS] = { "split", "split,in_order", "packed", "packed,in_order" };

enum test_rings test_rings;

static struct test *first, **last = &first;

void
test_add(struct test *test)
{
    *last = test;
    last = &test->next;
}

static int
run(const struct test *test)
{
    int status = 0;

    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(PATIENCE_S);
        test->run();
        exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child) {
        perror("test_main");
        exit(2);
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (WIFSIGNALED(status))
        fprintf(stderr, "%s: ended by signal %d (%s)\n", test->name, WTERMSIG(status), strsignal(WTERMSIG(status)));
    fprintf(stderr, "FAILED %s (%s)\n", test->name, RINGS[test_rings]);
    return 1;
}

/* Does a test belong to the format at hand, and is its name asked for? */
static int
selected(const struct test *test, int n_words, char **words)
{
    if ((test->rings >> test_rings & 1) == 0)
        return 0;
    for (int i = 0; i < n_words; i++)
        if (strstr(test->name, words[i]) != NULL)
            return 1;
    return n_words == 0;
}

int
main(int argc, char **argv)
{
    int passed = 0, failed = 0, words = 1;
    enum test_rings from = TEST_SPLIT, to = TEST_RINGS;

    if (argc > 1 && strcmp(argv[1], "--rings") == 0) {
        while (from < TEST_RINGS && (argc == 2 || strcmp(RINGS[from], argv[2]) != 0))
            from++;
        if (from == TEST_RINGS) {
            fprintf(stderr, "--rings takes one of: split split,in_order packed "
                            "packed,in_order\n");
            return 2;
        }
        to = from + 1;
        words = 3;
    }
    for (test_rings = from; test_rings < to; test_rings++) {
        for (const struct test *t = first; t != NULL; t = t->next) {
            if (!selected(t, argc - words, argv + words))
                continue;
            if (run(t) == 0)
                passed++;
            else
                failed++;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
