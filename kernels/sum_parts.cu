// The kernels of parts.cuh by themselves, for products that tensor cores compute in parts.
// variants: scalar_t=float,double,f16,bf16
#include "parts.cuh"
