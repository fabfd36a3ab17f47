/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A library of framings.
 *
 * "words" ends a message at a blank, which belongs to it: text; but a word that begins with - is
 * dropped, with # binary, and ! makes the framing fail. With the configuration "count" each message
 * is the number of the word on this connection, written into the buffer. The first byte of a word
 * that begins with ? becomes the configuration's length, or N if there is none.
 *
 * "lines" is the built-in newline, wrapped: what core_framing gives can be called.
 *
 * Each run of the constructor and each end of a connection appends a line to the file that the
 * environment's WEBSOCKET_DEBUG_TRAIL names.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "websocket_bridge.h"

static void trail(const char *what, unsigned long value)
{
    const char *path = getenv("WEBSOCKET_DEBUG_TRAIL");
    char line[80];
    int file;

    if (path == NULL || (file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666)) < 0)
        return;
    snprintf(line, sizeof line, "%s %lu\n", what, value);
    if (write(file, line, strlen(line)) < 0)
        perror("framing_words");
    close(file);
}

static int64_t words(uint8_t *data, size_t length, size_t last_read, ws_operation *opcode,
                     void **framing_data, const char *config)
{
    unsigned long *count = *framing_data;
    const uint8_t *blank;
    size_t size;

    if (data == NULL) {
        trail("words", *count);
        free(count);
        return 0;
    }
    if (data[length] != 0 || last_read < 1 || last_read > length || *opcode != ws_frame_binary)
        return -1;
    if (count == NULL && (*framing_data = count = calloc(1, sizeof *count)) == NULL)
        return -1;
    if ((blank = memchr(data, ' ', length)) == NULL)
        return 0;
    size = (size_t)(blank - data) + 1;
    ++*count;
    *opcode = ws_frame_text;
    if (data[0] == '-')
        *opcode = ws_frame_discard;
    else if (data[0] == '#')
        *opcode = ws_frame_binary;
    else if (data[0] == '!')
        return -1;
    else if (data[0] == '?')
        data[0] = (uint8_t)(config == NULL ? 'N' : '0' + strlen(config) % 10);
    if (config != NULL && strcmp(config, "count") == 0 && size >= 2)
        data[0] = (uint8_t)('0' + *count % 10);
    return (int64_t)size;
}

static int64_t lines(uint8_t *data, size_t length, size_t last_read, ws_operation *opcode,
                     void **framing_data, const char *config)
{
    static char newline[] = "newline";

    return core_framing(newline)(data, length, last_read, opcode, framing_data, config);
}

static void __attribute__((constructor)) start(void)
{
    static char first[] = "words", second[] = "lines";
    uint64_t failed = core_register_framing(first, words) | core_register_framing(second, lines)
        | !core_register_framing(NULL, words) | !core_register_framing(first, NULL);

    trail(failed ? "framings failed" : "framings", (unsigned long)getpid());
}
