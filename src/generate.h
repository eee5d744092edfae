/* `tesserad generate`: the engine without HTTP. */
#ifndef TS_GENERATE_H
#define TS_GENERATE_H

/* argv[0] is "generate". Prints to stdout and stderr; returns the exit status: 0, 1 when it failed, 2 when the
 * arguments are wrong. */
int ts_generate_main(int argc, char **argv);

#endif
