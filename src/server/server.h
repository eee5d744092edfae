/* The server: HTTP in front of the scheduler, from start to an orderly end.
 *
 * One thread runs the loop: sockets, requests, answers, timers, signals. Models are loaded by a thread of the
 * loop's pool, pictures are encoded by it, and the scheduler's threads only post to a mailbox. */
#ifndef TS_SERVER_SERVER_H
#define TS_SERVER_SERVER_H

#include "base/config.h"

/* Checks what the configuration means without starting anything. TS_EINVAL with the place. */
ts_code ts_server_check(const ts_config *config, ts_error *e);

/* And whether the models, LoRAs and embeddings that it names can be loaded, which takes as long as that. Logs. */
ts_code ts_server_check_models(const ts_config *config, ts_error *e);

/* Listens, loads, serves, until SIGTERM, SIGINT or SIGHUP, and then until all that was accepted is answered (at most
 * server.drain_timeout; a second signal ends the wait). TS_OK after an orderly end; otherwise why it did not
 * start. Logs. */
ts_code ts_server_run(const ts_config *config, ts_error *e);

#endif
