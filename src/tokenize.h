/* tesserad tokenize: the ids that a model's text encoders are given, for anyone to compare. */
#ifndef TS_TOKENIZE_H
#define TS_TOKENIZE_H

/* argv[0] is "tokenize". Reads a JSON string a line from stdin and writes a line for each to stdout:
 * {"tokenizer":[...]}, for XL {"tokenizer":[...],"tokenizer_2":[...]}; start and end included, neither cut
 * nor padded. Returns the exit status; a line that is no JSON string ends it, with its number on stderr. */
int ts_tokenize_main(int argc, char **argv);

#endif
