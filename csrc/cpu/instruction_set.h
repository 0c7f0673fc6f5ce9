// Names that tell the instruction sets apart for which a source is compiled (FRICTION_ISA).
#pragma once

#define FRICTION_JOIN_(a, b) a##b
#define FRICTION_JOIN(a, b) FRICTION_JOIN_(a, b)
#define FRICTION_TEXT_(a) #a
#define FRICTION_TEXT(a) FRICTION_TEXT_(a)
