#include "lib/model/linear.h"

#include "ATen/core/dispatch/Dispatcher.h"
#include "ATen/ops/addmm.h"
#include "ATen/ops/mm.h"
#include "c10/core/GradMode.h"
#include "torch/csrc/autograd/custom_function.h"

namespace cox {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// mkldnn::_linear_pointwise(x, weight [out, in], bias, "none", [], "").
using OneDnnLinear = at::Tensor(const at::Tensor&, const at::Tensor&,
                                const std::optional<at::Tensor>&,
                                c10::string_view,
                                c10::List<std::optional<at::Scalar>>,
                                std::optional<c10::string_view>);
using OneDnnHandle = c10::TypedOperatorHandle<OneDnnLinear>;

std::optional<OneDnnHandle> FindOneDnn() {
  auto schema = c10::Dispatcher::singleton().findSchema(
      {"mkldnn::_linear_pointwise", ""});
  if (!schema.has_value()) return std::nullopt;
  return schema->typed<OneDnnLinear>();
}

class AffineFunction : public torch::autograd::Function<AffineFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias,
                            bool input_major) {
    context->save_for_backward({x, weight});
    context->saved_data["input_major"] = input_major;
    context->saved_data["has_bias"] = bias.has_value();
    return MatMul(x, input_major ? weight : weight.t(),
                  bias.value_or(at::Tensor()));
  }
  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor& x = saved[0];
    const at::Tensor& weight = saved[1];
    const at::Tensor& dy = gradients[0];
    const bool input_major = context->saved_data["input_major"].toBool();
    at::Tensor dx, dw, db;
    if (context->needs_input_grad(0)) {
      dx = MatMul(dy, input_major ? weight.t() : weight);
    }
    if (context->needs_input_grad(1)) {
      dw = input_major ? MatMul(x.t(), dy) : MatMul(dy.t(), x);
    }
    if (context->saved_data["has_bias"].toBool()) db = dy.sum(/*dim=*/0);
    return {dx, dw, db, at::Tensor()};
  }
};

}  // namespace

at::Tensor MatMul(const at::Tensor& a, const at::Tensor& b,
                  const at::Tensor& bias) {
  static const std::optional<OneDnnHandle> one_dnn = FindOneDnn();
  if (one_dnn.has_value() && a.scalar_type() == at::kFloat &&
      a.device().is_cpu() && a.numel() != 0) {
    std::optional<at::Tensor> addend;
    if (bias.defined()) addend = bias;
    return one_dnn->call(a, b.t(), addend, "none",
                         c10::List<std::optional<at::Scalar>>(), "");
  }
  return bias.defined() ? at::addmm(bias, a, b) : at::mm(a, b);
}

at::Tensor Affine(const at::Tensor& x, const at::Tensor& weight,
                  const at::Tensor& bias, bool input_major) {
  if (!c10::GradMode::is_enabled()) {
    return MatMul(x, input_major ? weight : weight.t(), bias);
  }
  // An undefined tensor among the inputs would be an error there.
  std::optional<at::Tensor> addend;
  if (bias.defined()) addend = bias;
  return AffineFunction::apply(x, weight, addend, input_major);
}

}  // namespace cox
