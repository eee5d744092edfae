/* tesserad: wires the layers together. The only file that sees all of them. */
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "generate.h"
#include "tokenize.h"

#ifdef TS_HAVE_SERVER
#include "base/config.h"
#include "base/log.h"
#include "server/server.h"

static const char usage[] =
    "usage: tesserad [options]            serve pictures over HTTP\n"
    "       tesserad generate [options]   make pictures without a server; --help tells\n"
    "       tesserad tokenize [options]   print the ids of JSON strings\n"
    "  --config FILE          every option is in conf/tesserad.conf; what follows here wins over the file\n"
    "  --listen ADDR:PORT     (default 127.0.0.1:8080); port 0 takes a free one\n"
    "  --port-file FILE       the port is written to it\n"
    "  --model DIR            a diffusers folder; may come more than once\n"
    "  --vae FILE|DIR         an autoencoder in place of the first model's\n"
    "  --lora FILE[:SCALE]    a LoRA that is fused into the first model; may come more than once\n"
    "  --devices SPEC         cpu:N, cpu:NxT (T threads each) or auto\n"
    "  --check-config         says whether the configuration and its models are good, and ends\n"
    "  --version\n"
    "  --help\n"
    "exit status: 0 after an orderly end, 1 when something failed, 2 when the options or the configuration "
    "are wrong\n";

enum { OPT_CONFIG = 256, OPT_CHECK, OPT_VERSION, OPT_HELP, OPT_VALUE };

static const struct option longs[] = {{"config", 1, 0, OPT_CONFIG},
                                      {"listen", 1, 0, OPT_VALUE},
                                      {"port-file", 1, 0, OPT_VALUE},
                                      {"model", 1, 0, OPT_VALUE},
                                      {"vae", 1, 0, OPT_VALUE},
                                      {"lora", 1, 0, OPT_VALUE},
                                      {"devices", 1, 0, OPT_VALUE},
                                      {"check-config", 0, 0, OPT_CHECK},
                                      {"version", 0, 0, OPT_VERSION},
                                      {"help", 0, 0, OPT_HELP},
                                      {0}};

/* What --NAME sets. */
static const struct {
    const char *name, *section, *key;
} values[] = {{"listen", "server", "listen"}, {"port-file", "server", "port_file"},
              {"model", "models", "path"},    {"vae", "models", "vae"},
              {"lora", "models", "lora"},     {"devices", "devices", "devices"}};

static ts_code set_value(ts_config *c, const char *name, const char *value, ts_error *e) {
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (!strcmp(values[i].name, name)) {
            ts_code rc = ts_config_set(c, values[i].section, values[i].key, value, e);
            return rc ? ts_error_context(e, rc, "--%s", name) : TS_OK;
        }
    return TS_EINTERNAL;
}

static int complain(const ts_error *e) {
    fprintf(stderr, "tesserad: %s\n", e->message[0] ? e->message : ts_code_sentence(e->code));
    return e->code == TS_EINVAL || e->code == TS_ENOTFOUND ? 2 : 1;
}

/* The command line twice: first the file, then what wins over it. Returns the exit status, -1 to go on. */
static int read_options(int argc, char **argv, ts_config *c, bool *ret_check, ts_error *e) {
    for (int round = 0; round < 2; round++) {
        int option, at = 0;
        optind = 1;
        while ((option = getopt_long(argc, argv, "", longs, &at)) != -1) {
            ts_code rc = TS_OK;
            switch (option) {
            case OPT_CONFIG:
                if (round == 0) rc = ts_config_read(c, optarg, e);
                break;
            case OPT_VALUE:
                if (round == 1) rc = set_value(c, longs[at].name, optarg, e);
                break;
            case OPT_CHECK: *ret_check = true; break;
            case OPT_VERSION: printf("tesserad %s\n", TS_VERSION); return 0;
            case OPT_HELP: fputs(usage, stdout); return 0;
            default: return 2; /* getopt has said what */
            }
            if (rc) return complain(e);
        }
    }
    if (optind < argc) {
        fprintf(stderr, "tesserad: unexpected \"%s\"; --help tells what there is\n", argv[optind]);
        return 2;
    }
    return -1;
}

static int serve(int argc, char **argv) {
    ts_config *config = NULL;
    ts_error e = {0};
    bool check = false;
    if (ts_config_new(&config, &e)) return complain(&e);
    int status = read_options(argc, argv, config, &check, &e);
    if (status >= 0) goto done;
    status = ts_server_check(config, &e) ? complain(&e) : 0;
    if (status) goto done;
    ts_log_set_level((ts_log_level)ts_log_level_find(config->log.level));
    if (check) {
        status = ts_server_check_models(config, &e) ? complain(&e) : 0;
        if (!status) printf("OK\n");
        goto done;
    }
    if (ts_server_run(config, &e)) {
        ts_log(TS_LOG_ERROR, "%s", e.message[0] ? e.message : ts_code_sentence(e.code));
        status = e.code == TS_EINVAL ? 2 : 1;
    }
done:
    ts_config_free(config);
    return status;
}
#else
static int serve(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        printf("tesserad %s\n", TS_VERSION);
        return 0;
    }
    fprintf(stderr, "usage: tesserad generate [options]   (this build has no server)\n");
    return 2;
}
#endif

/* The threads of a device wait for each other at the end of every kernel, by spinning. Where other programs
 * want the processors too, the one that is waited for may not be running, and libgomp would spin for a
 * millisecond each time: a picture takes ten times as long as its share of the machine. It spins this often
 * where it knows of more threads than processors, and on an idle machine that is no slower. It reads the
 * variable before main does. */
static void spin_less(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY") || setenv("GOMP_SPINCOUNT", "1000", 0)) return;
    execv("/proc/self/exe", argv); /* a failure leaves it as it was */
}

/* Who starts us without one of the first three would find its messages in a socket that has got the number.
 */
static void fill_standard_descriptors(void) {
    int fd;
    while ((fd = open("/dev/null", O_RDWR)) >= 0 && fd <= STDERR_FILENO) continue;
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    fill_standard_descriptors();
    spin_less(argv);
    if (argc > 1 && !strcmp(argv[1], "generate")) return ts_generate_main(argc - 1, argv + 1);
    if (argc > 1 && !strcmp(argv[1], "tokenize")) return ts_tokenize_main(argc - 1, argv + 1);
    return serve(argc, argv);
}
