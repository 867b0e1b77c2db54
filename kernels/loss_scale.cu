// Which numbers an update has under a loss scale, where only the device knows whether the steps before were done.
// variants: scalar_t=double
#include "common.cuh"

// What the host knows of a parameter's next update: where its skipped steps are counted, the steps so far with this one, the
// learning rate, and the factor of its decoupled weight decay.
struct Next {
  i64 index, steps;
  double lr, decay;
};

struct Betas {
  double beta1, beta2, eps;
};

// Counts this step as skipped where unscale is 0. A skipped step is none: with t the steps that were done, this one included,
// rates = {lr, 0, decay}                                                    correction 0
//         {lr sqrt(1 - beta2^t) / (1 - beta1^t), 1, decay}                  correction 1, Adam in MXNet's convention
//         {lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t), decay}                correction 2, in PyTorch's
extern "C" __global__ void rates_of_done_steps(double* __restrict__ rates, i64* __restrict__ skipped, const Next* __restrict__ next,
                                               const double* __restrict__ unscale, Betas betas, int correction, i64 n) {
  GRID_STRIDE(i, n) {
    Next p = next[i];
    i64 none = skipped[p.index] + (*unscale == 0);
    skipped[p.index] = none;
    double t = (double)(p.steps - none), rate = p.lr, v_scale = 0;
    // Before the first step that is done nothing reads the rates.
    if (correction && t > 0) {
      double c1 = 1 - pow(betas.beta1, t), c2 = 1 - pow(betas.beta2, t);
      rate = correction == 1 ? p.lr * sqrt(c2) / c1 : p.lr / c1;
      v_scale = correction == 1 ? 1 : 1 / sqrt(c2);
    }
    rates[3 * i] = rate;
    rates[3 * i + 1] = v_scale;
    rates[3 * i + 2] = p.decay;
  }
}
