// A reference to a callable: two words, no allocation. Lives no longer than what it refers to.
#ifndef BALLAST_KERNELS_FUNCTION_REF_H_
#define BALLAST_KERNELS_FUNCTION_REF_H_

#include <memory>
#include <type_traits>
#include <utility>

namespace ballast {

template <typename Signature>
class FunctionRef;

template <typename Result, typename... Args>
class FunctionRef<Result(Args...)> {
 public:
  template <typename F>
  requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
      // Implicit, so that a lambda can be given where a FunctionRef is taken.
      FunctionRef(F&& f)  // NOLINT(google-explicit-constructor)
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(f)))),
        call_([](void* object, Args... args) -> Result {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  Result operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  Result (*call_)(void*, Args...);
};

}  // namespace ballast

#endif  // BALLAST_KERNELS_FUNCTION_REF_H_
