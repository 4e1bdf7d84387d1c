#include "lib/model/recompute.h"

#include <optional>

#include "ATen/core/ivalue.h"
#include "c10/core/GradMode.h"
#include "torch/csrc/autograd/custom_function.h"

namespace cox {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Body = std::function<at::Tensor(const Recomputed&)>;
using Input = std::optional<at::Tensor>;

struct BodyHolder : torch::CustomClassHolder {
  explicit BodyHolder(Body b) : body(std::move(b)) {}
  Body body;
};

class RecomputeFunction : public torch::autograd::Function<RecomputeFunction> {
 public:
  static at::Tensor forward(AutogradContext* context, const Input& a,
                            const Input& b, const Input& c,
                            c10::intrusive_ptr<BodyHolder> holder) {
    const Recomputed inputs = {a.value_or(at::Tensor()),
                               b.value_or(at::Tensor()),
                               c.value_or(at::Tensor())};
    at::Tensor out = holder->body(inputs);
    context->save_for_backward({inputs[0], inputs[1], inputs[2]});
    context->saved_data["body"] = c10::IValue::make_capsule(std::move(holder));
    return out;
  }
  static variable_list backward(AutogradContext* context,
                                variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const auto capsule = context->saved_data["body"].toCapsule();
    const auto* holder = static_cast<const BodyHolder*>(capsule.get());
    Recomputed inputs;
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!saved[i].defined()) continue;
      inputs[i] = saved[i].detach();
      inputs[i].requires_grad_(saved[i].requires_grad());
    }
    at::Tensor out;
    {
      c10::AutoGradMode with_graph(true);
      out = holder->body(inputs);
    }
    out.backward(gradients[0]);
    variable_list result;
    for (const at::Tensor& input : inputs) {
      result.push_back(input.defined() ? input.grad() : at::Tensor());
    }
    result.emplace_back();  // of the body
    return result;
  }
};

Input AsInput(const at::Tensor& tensor) {
  return tensor.defined() ? Input(tensor) : std::nullopt;
}

}  // namespace

at::Tensor Recompute(const Recomputed& inputs,
                     std::function<at::Tensor(const Recomputed&)> body) {
  return RecomputeFunction::apply(
      AsInput(inputs[0]), AsInput(inputs[1]), AsInput(inputs[2]),
      c10::make_intrusive<BodyHolder>(std::move(body)));
}

}  // namespace cox
