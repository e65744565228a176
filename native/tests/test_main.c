/* SPDX-License-Identifier: Apache-2.0 */
/* test_main.c - runs what TEST() has registered, each test in a child process; see test.h. */
#include "test.h"

#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { PATIENCE_S = 60 };

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
    fprintf(stderr, "FAILED %s\n", test->name);
    return 1;
}

static int
selected(const struct test *test, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strstr(test->name, argv[i]) != NULL)
            return 1;
    return argc == 1;
}

int
main(int argc, char **argv)
{
    int passed = 0, failed = 0;

    for (const struct test *t = first; t != NULL; t = t->next) {
        if (!selected(t, argc, argv))
            continue;
        if (run(t) == 0)
            passed++;
        else
            failed++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
