// The kernels of parts.cuh by themselves, for products that tensor cores compute in parts.
// variants: scalar_t=float,double,f16,bf16
// variants: scalar_t=float,f16,bf16; ACTIVATION=RELU,SIGMOID,TANH; arch=80,90a
#include "parts.cuh"
