// Marks what the shared library shows to its users; everything else stays hidden in it.
#pragma once

#if defined(__GNUC__)
#define CHIPMUNK_API __attribute__((visibility("default")))
#else
#define CHIPMUNK_API
#endif
