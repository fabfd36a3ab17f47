/* A resolver that hangs (LD_PRELOAD): it answers no question for a name below ".slow" before a minute has passed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <string.h>
#include <unistd.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    look_up *next;
    size_t len = name != NULL ? strlen(name) : 0;

    if (len > 5 && strcmp(name + len - 5, ".slow") == 0) {
        sleep(60);
        return EAI_AGAIN;
    }
    *(void **)&next = dlsym(RTLD_NEXT, "getaddrinfo");
    return next(name, service, hints, found);
}
