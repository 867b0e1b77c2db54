#pragma once
#include <map>

#include "words.h"

// C++ that does what the PTX says; `names`: what a kernel is called by, where that is not its name in the PTX. Throws Refused.
Str ptx_to_cpp(const Str& ptx, const std::map<Str, Str>& names);
