/* tesserad: wires the layers together. The only file that sees all of them. */
#include <stdio.h>
#include <string.h>
#include "generate.h"

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "generate")) return ts_generate_main(argc - 1, argv + 1);
    fprintf(stderr, "usage: tesserad generate ...\n");
    return 2;
}
